//! The contracts between processes as they were released: what another build relies on is not changed under it.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, ServiceDescriptorProto};
use std::collections::BTreeMap;

/// What stands for a number that nothing may use again.
const RESERVED: &str = "reserved";

#[test]
fn the_contracts_match_their_golden_file_and_only_grow() {
    let golden = include_str!("../golden/contracts_v1.txt");
    let contracts = contracts();
    let broken = broken(golden, &contracts);
    assert!(broken.is_empty(), "other builds rely on this, so it stays as it is:\n{}", broken.join("\n"));
    println!("{contracts}");
    assert!(contracts == golden, "something is new: put what is printed above into golden/contracts_v1.txt");
}

#[test]
fn a_number_keeps_its_meaning_or_is_reserved() {
    let old = "a.M 1: string name\na.M 2: uint64 size\nrpc a.S/Do: a.M -> a.M\n";
    for (new, expected) in [
        ("a.M 1: string name\na.M 2: uint64 size\na.M 3: bool more\nrpc a.S/Do: a.M -> a.M\n", None),
        ("a.M 1: string name\na.M 2: reserved\nrpc a.S/Do: a.M -> a.M\n", None),
        ("a.M 1: string name\nrpc a.S/Do: a.M -> a.M\n", Some("a.M 2")),
        ("a.M 1: string name\na.M 2: uint32 size\nrpc a.S/Do: a.M -> a.M\n", Some("a.M 2")),
        ("a.M 1: string name\na.M 2: uint64 other\nrpc a.S/Do: a.M -> a.M\n", Some("a.M 2")),
        ("a.M 1: string name\na.M 3: uint64 size\nrpc a.S/Do: a.M -> a.M\n", Some("a.M 2")),
        ("a.M 1: string name\na.M 2: uint64 size\nrpc a.S/Do: a.M -> stream a.M\n", Some("rpc a.S/Do")),
        ("a.M 1: string name\na.M 2: uint64 size\n", Some("rpc a.S/Do")),
    ] {
        let found = broken(old, new);
        assert_eq!(found.len(), usize::from(expected.is_some()), "{new}{found:?}");
        assert!(found.iter().zip(expected).all(|(found, expected)| found.starts_with(expected)), "{found:?}");
    }
    let reused = "a.M 1: string name\na.M 2: bool other\n";
    assert_eq!(broken("a.M 1: string name\na.M 2: reserved\n", reused).len(), 1);
}

/// What another build would not understand any more.
fn broken(old: &str, new: &str) -> Vec<String> {
    let lines = |text: &str| -> BTreeMap<String, String> {
        let lines = text.lines().map(|line| line.split_once(": ").unwrap());
        lines.map(|(key, meaning)| (key.to_owned(), meaning.to_owned())).collect()
    };
    let (old, new) = (lines(old), lines(new));
    let changed = old.iter().filter_map(|(key, was)| match new.get(key) {
        Some(is) if is == was || (is == RESERVED && !key.starts_with("rpc ")) => None,
        Some(is) => Some(format!("{key} was {was:?} and is {is:?}: take a new number")),
        None => Some(format!("{key} was {was:?} and is gone: reserve its number")),
    });
    changed.collect()
}

/// All messages, enums and services of the files that the build compiles, a line for each number and method.
fn contracts() -> String {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/proto");
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let set = protox::compile(files.collect::<Vec<_>>(), [directory]).unwrap();
    let mut lines = Vec::new();
    for file in &set.file {
        describe_file(file, &mut lines);
    }
    lines.sort_by_key(|(key, _): &(String, String)| natural(key));
    lines.into_iter().map(|(key, meaning)| format!("{key}: {meaning}\n")).collect()
}

/// `M 2` before `M 10`.
fn natural(key: &str) -> (String, i64) {
    match key.rsplit_once(' ').and_then(|(name, number)| Some((name, number.parse().ok()?))) {
        Some((name, number)) => (name.to_owned(), number),
        None => (key.to_owned(), 0),
    }
}

type Lines = Vec<(String, String)>;

fn describe_file(file: &FileDescriptorProto, lines: &mut Lines) {
    for message in &file.message_type {
        describe_message(file.package(), message, lines);
    }
    for kind in &file.enum_type {
        describe_enum(file.package(), kind, lines);
    }
    for service in &file.service {
        describe_service(file.package(), service, lines);
    }
}

fn describe_message(scope: &str, message: &DescriptorProto, lines: &mut Lines) {
    let name = format!("{scope}.{}", message.name());
    for field in &message.field {
        let label = match (field.label(), field.proto3_optional()) {
            (Label::Repeated, _) => "repeated ",
            (_, true) => "optional ",
            _ => "",
        };
        let kind = match field.r#type() {
            Type::Message | Type::Enum => field.type_name().trim_start_matches('.').to_owned(),
            plain => plain.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
        };
        let one_of = field.oneof_index.filter(|_| !field.proto3_optional()).map(|index| {
            let one_of = &message.oneof_decl[usize::try_from(index).unwrap()];
            format!(" in {}", one_of.name())
        });
        let meaning = format!("{label}{kind} {}{}", field.name(), one_of.unwrap_or_default());
        lines.push((format!("{name} {}", field.number()), meaning));
    }
    for range in &message.reserved_range {
        lines.extend((range.start()..range.end()).map(|number| reserved(&name, number)));
    }
    for nested in &message.nested_type {
        describe_message(&name, nested, lines);
    }
    for kind in &message.enum_type {
        describe_enum(&name, kind, lines);
    }
}

fn describe_enum(scope: &str, kind: &EnumDescriptorProto, lines: &mut Lines) {
    let name = format!("{scope}.{}", kind.name());
    lines.extend(
        kind.value.iter().map(|value| (format!("{name} {}", value.number()), value.name().to_owned())),
    );
    for range in &kind.reserved_range {
        lines.extend((range.start()..=range.end()).map(|number| reserved(&name, number)));
    }
}

fn reserved(name: &str, number: i32) -> (String, String) {
    (format!("{name} {number}"), RESERVED.to_owned())
}

fn describe_service(scope: &str, service: &ServiceDescriptorProto, lines: &mut Lines) {
    let stream = |is_stream: bool| if is_stream { "stream " } else { "" };
    for method in &service.method {
        let asked = format!("{}{}", stream(method.client_streaming()), &method.input_type()[1..]);
        let answered = format!("{}{}", stream(method.server_streaming()), &method.output_type()[1..]);
        let key = format!("rpc {scope}.{}/{}", service.name(), method.name());
        lines.push((key, format!("{asked} -> {answered}")));
    }
}
