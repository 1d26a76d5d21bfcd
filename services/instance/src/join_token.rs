//! The token that a new process presents, as people copy it.

use wayleave_vocab::Secret;

/// What `way tokens add` prints (`name.secret`), or the bare secret of a static token.
#[derive(Clone)]
pub struct JoinToken {
    name: String,
    secret: Secret,
}

impl JoinToken {
    /// Takes the text of a token; white space around it is dropped.
    pub fn parse(text: &Secret) -> Self {
        let text = text.expose_secret().trim();
        match text.rsplit_once('.') {
            Some((name, secret)) if !name.is_empty() && !secret.is_empty() => {
                Self { name: name.to_owned(), secret: Secret::new(secret.to_owned()) }
            }
            _ => Self { name: String::new(), secret: Secret::new(text.to_owned()) },
        }
    }

    /// A token whose name and secret are given apart.
    pub fn from_parts(name: String, secret: Secret) -> Self {
        Self { name, secret }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, name: &str, secret: &str) {
        let token = JoinToken::parse(&Secret::new(text.to_owned()));
        assert_eq!((token.name(), token.secret().expose_secret()), (name, secret), "{text}");
    }

    #[test]
    fn a_token_is_a_name_and_a_secret_or_a_secret() {
        check("web.0123abcd\n", "web", "0123abcd");
        check("a.b.c", "a.b", "c");
        check("secret", "", "secret");
        check(".secret", "", ".secret");
    }
}
