//! Whatever is read is written so that it reads the same; whatever is given, nothing panics.

use proptest::prelude::*;
use wayleave_resource::{Metadata, Resource, User, UserSpec, UserStatus};
use wayleave_vocab::{Labels, RoleName, Traits, UserName, Wall};

const DOCUMENT: &str = include_str!("../golden/role.yaml");

proptest! {
    #[test]
    fn any_text_survives_json_and_yaml(
        description in "(?s).{0,40}",
        label in "[^\\p{Cc}]{0,30}",
        trait_name in "[^\\p{Cc}]{1,20}",
        values in proptest::collection::vec("[^\\p{Cc}]{0,30}", 1..4),
        expires_ms in 0u64..4_000_000_000_000,
    ) {
        let mut labels = Labels::default();
        labels.insert("key".to_owned(), label).unwrap();
        let user = User {
            name: UserName::parse("alice").unwrap(),
            metadata: Metadata {
                description: Some(description),
                labels,
                expires: Some(Wall::from_ms(expires_ms)),
                revision: None,
            },
            spec: UserSpec {
                roles: [RoleName::parse("access").unwrap()].into(),
                traits: Traits::from([(trait_name, values)]),
            },
            status: UserStatus::default(),
        };
        let resource = Resource::from(user);
        prop_assert_eq!(Resource::parse_json(&resource.to_stored_json()), Ok(resource.clone()));
        let yaml = resource.to_yaml();
        prop_assert_eq!(Resource::parse_yaml(&yaml), Ok(vec![resource]), "{}", yaml);
    }

    #[test]
    fn f_arbitrary_text_never_panics(text in "\\PC{0,300}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = Resource::parse_yaml(&text);
        let _ = Resource::parse_json(&text);
        let _ = Resource::parse_yaml(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn f_damaged_documents_never_panic_and_read_back_if_they_read(
        at in 0..DOCUMENT.len(), length in 0usize..40, insert in "[-:{}\\[\\]*&!|>'\"# \n\ta-z0]{0,8}",
    ) {
        let end = (at + length).min(DOCUMENT.len());
        let text = format!("{}{insert}{}", &DOCUMENT[..at], &DOCUMENT[end..]);
        if let Ok(resources) = Resource::parse_yaml(&text) {
            for resource in resources {
                prop_assert_eq!(Resource::parse_yaml(&resource.to_yaml()), Ok(vec![resource.clone()]));
                prop_assert_eq!(Resource::parse_json(&resource.to_stored_json()), Ok(resource));
            }
        }
    }
}
