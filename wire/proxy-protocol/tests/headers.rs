//! Headers that real load balancers write, headers that nobody should, and any bytes at all.

use proptest::prelude::*;
use std::net::SocketAddr;
use wayleave_proxy_protocol::{HEADER_BYTES_MAX, Parsed, ProxyHeaderError, V1_BYTES_MAX, encode_v2, parse};

#[test]
fn headers_of_real_load_balancers_are_read() {
    let rows = include_str!("../golden/headers.txt").lines().filter(|line| !line.starts_with('#'));
    let mut count = 0;
    for row in rows {
        let fields: Vec<&str> = row.split(" | ").collect();
        let [name, hex, source, destination] = fields[..] else { panic!("{row}") };
        let bytes = from_hex(hex);
        let expected = Parsed::Complete {
            source: source.parse().ok(),
            destination: destination.parse().ok(),
            consumed: bytes.len() - b"HELLO".len(),
        };
        assert_eq!(parse(&bytes), Ok(expected), "{name}");
        check_every_prefix(&bytes[..bytes.len() - b"HELLO".len()]);
        count += 1;
    }
    assert_eq!(count, 10);
}

#[test]
fn version_1_is_taken_at_its_word() {
    check_v1("PROXY TCP4 192.0.2.1 192.0.2.2 1 65535\r\n", Some("192.0.2.1:1"));
    check_v1("PROXY TCP4 192.0.2.1 192.0.2.2 0 0\r\n", Some("192.0.2.1:0"));
    check_v1("PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n", Some("[2001:db8::1]:1"));
    check_v1("PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Some("192.0.2.1:1"));
    check_v1("PROXY UNKNOWN\r\n", None);
    check_v1("PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None);
}

#[test]
fn version_1_that_bends_the_format_is_refused() {
    check_malformed("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\n");
    check_malformed("PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n");
    check_malformed("PROXY TCP4 192.0.2.1 192.0.2.2 1 2 3\r\n");
    check_malformed("PROXY TCP4 192.0.2.1 192.0.2.2 1 2 \r\n");
    check_malformed("PROXY TCP4  192.0.2.1 192.0.2.2 1 2\r\n");
    check_malformed("PROXY TCP4 192.0.2.1 192.0.2.2 01 2\r\n");
    check_malformed("PROXY TCP4 192.0.2.1 192.0.2.2 +1 2\r\n");
    check_malformed("PROXY TCP4 192.0.2.1 192.0.2.2 1 65536\r\n");
    check_malformed("PROXY TCP4 192.0.2.1 192.0.2.2  2\r\n");
    check_malformed("PROXY TCP4 192.0.2 192.0.2.2 1 2\r\n");
    check_malformed("PROXY TCP4 ::1 ::2 1 2\r\n");
    check_malformed("PROXY TCP6 192.0.2.1 192.0.2.2 1 2\r\n");
    check_malformed("PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n");
    check_malformed("PROXY UDP4 192.0.2.1 192.0.2.2 1 2\r\n");
    check_malformed("PROXY UNKNOWN\r \n");
    check_malformed("PROXY \r\n         ");
    assert!(matches!(parse(b"PROXY TCP4 \xff\xfe\r\n"), Err(ProxyHeaderError::Malformed(_))));
}

#[test]
fn f_a_line_without_end_is_refused_at_its_bound() {
    let endless = |bytes: usize| [b"PROXY TCP4 ".to_vec(), vec![b'1'; bytes - 11]].concat();
    assert_eq!(parse(&endless(V1_BYTES_MAX - 1)), Ok(Parsed::NeedMore { at_least: V1_BYTES_MAX }));
    assert!(matches!(parse(&endless(V1_BYTES_MAX)), Err(ProxyHeaderError::TooLong { .. })));
    assert!(matches!(parse(&endless(V1_BYTES_MAX * 9)), Err(ProxyHeaderError::TooLong { .. })));
}

#[test]
fn f_a_declared_length_is_bounded_before_it_is_awaited() {
    let fits = u16::try_from(HEADER_BYTES_MAX - 16).unwrap();
    assert_eq!(parse(&v2_fixed(0x21, 0x11, fits)), Ok(Parsed::NeedMore { at_least: HEADER_BYTES_MAX }));
    for length in [fits + 1, u16::MAX] {
        let header_bytes = usize::from(length) + 16;
        let expected = ProxyHeaderError::TooLong { header_bytes, header_bytes_max: HEADER_BYTES_MAX };
        assert_eq!(parse(&v2_fixed(0x21, 0x11, length)), Err(expected));
    }
    for length in [0, 1, 11] {
        assert!(matches!(parse(&v2_fixed(0x21, 0x11, length)), Err(ProxyHeaderError::Malformed(_))));
        assert!(matches!(parse(&v2_fixed(0x21, 0x21, length + 24)), Err(ProxyHeaderError::Malformed(_))));
    }
}

#[test]
fn version_2_refuses_what_it_cannot_be() {
    assert_eq!(parse(&v2_fixed(0x11, 0x11, 12)), Err(ProxyHeaderError::Version(1)));
    assert_eq!(parse(&v2_fixed(0x31, 0x11, 12)), Err(ProxyHeaderError::Version(3)));
    assert_eq!(parse(&v2_fixed(0x22, 0x11, 12)), Err(ProxyHeaderError::Command(2)));
    for family in [0x10, 0x12, 0x22, 0x31, 0x32, 0x41, 0xff] {
        assert_eq!(parse(&v2_fixed(0x21, family, 216)), Err(ProxyHeaderError::Family(family)));
    }
}

#[test]
fn a_local_or_unspecified_header_names_nobody_whatever_it_carries() {
    for (command, family) in [(0x20, 0x11), (0x20, 0x00), (0x20, 0xff), (0x21, 0x00)] {
        let bytes = [v2_fixed(command, family, 12), vec![7; 12]].concat();
        assert_eq!(parse(&bytes), Ok(Parsed::Complete { source: None, destination: None, consumed: 28 }));
    }
}

#[test]
fn other_protocols_are_told_apart_at_once() {
    for start in
        [&b"\x16\x03\x01"[..], b"SSH-2.0-", b"GET /", b"P\r", b"\r\n\r\n\0\r\nQUIT\r", b"proxy TCP4", b"\0"]
    {
        assert_eq!(parse(start), Err(ProxyHeaderError::Missing), "{start:?}");
    }
    assert_eq!(parse(b""), Ok(Parsed::NeedMore { at_least: 15 }));
    assert_eq!(parse(b"\r\n"), Ok(Parsed::NeedMore { at_least: 16 }));
}

proptest! {
    #[test]
    fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        check_invariants(&bytes)?;
    }

    #[test]
    fn f_almost_version_1_never_panics(tail in "[A-Z0-9 .:\r\n\\x00]{0,120}") {
        check_invariants(&[b"PROXY ", tail.as_bytes()].concat())?;
    }

    #[test]
    fn f_almost_version_2_never_panics(
        command in any::<u8>(),
        family in any::<u8>(),
        length in prop_oneof![0u16..64, any::<u16>()],
        tail in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        check_invariants(&[v2_fixed(command, family, length), tail].concat())?;
    }

    #[test]
    fn what_is_written_reads_back(source: SocketAddr, destination: SocketAddr, tail: [u8; 3]) {
        let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        let header = encode_v2(Some((source, destination)));
        let expected = Parsed::Complete {
            source: Some(canonical(source)),
            destination: Some(canonical(destination)),
            consumed: header.len(),
        };
        prop_assert_eq!(parse(&[&header[..], &tail].concat()), Ok(expected));
        check_every_prefix(&header);
    }
}

#[test]
fn a_header_without_addresses_reads_back() {
    let expected = Parsed::Complete { source: None, destination: None, consumed: 16 };
    assert_eq!(parse(&encode_v2(None)), Ok(expected));
}

fn check_v1(line: &str, source: Option<&str>) {
    let Ok(Parsed::Complete { source: got, destination, consumed }) = parse(line.as_bytes()) else {
        panic!("{line:?}: {:?}", parse(line.as_bytes()));
    };
    assert_eq!(got, source.and_then(|s| s.parse().ok()), "{line:?}");
    assert_eq!((destination.is_some(), consumed), (got.is_some(), line.len()), "{line:?}");
    check_every_prefix(line.as_bytes());
}

fn check_malformed(line: &str) {
    assert!(matches!(parse(line.as_bytes()), Err(ProxyHeaderError::Malformed(_))), "{line:?}");
}

/// Cut anywhere, a header asks for more than it got and for no more than there is.
fn check_every_prefix(header: &[u8]) {
    for cut in 0..header.len() {
        let Ok(Parsed::NeedMore { at_least }) = parse(&header[..cut]) else {
            panic!("{cut} of {} bytes: {:?}", header.len(), parse(&header[..cut]));
        };
        assert!(cut < at_least && at_least <= header.len(), "{at_least} wanted at {cut} of {}", header.len());
    }
}

fn check_invariants(bytes: &[u8]) -> Result<(), TestCaseError> {
    match parse(bytes) {
        Ok(Parsed::Complete { source, destination, consumed }) => {
            prop_assert!(consumed <= bytes.len() && consumed <= HEADER_BYTES_MAX);
            prop_assert_eq!(source.is_some(), destination.is_some());
            prop_assert_eq!(parse(&bytes[..consumed]), parse(bytes));
        }
        Ok(Parsed::NeedMore { at_least }) => {
            prop_assert!(bytes.len() < at_least && at_least <= HEADER_BYTES_MAX);
        }
        Err(_) => {}
    }
    Ok(())
}

fn v2_fixed(command: u8, family: u8, length: u16) -> Vec<u8> {
    let [high, low] = length.to_be_bytes();
    [&b"\r\n\r\n\0\r\nQUIT\n"[..], &[command, family, high, low]].concat()
}

fn from_hex(hex: &str) -> Vec<u8> {
    (0..hex.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("golden rows are hex"))
        .collect()
}
