//! Frames read back, look as the golden file says, and never break the reader.

use bytes::BytesMut;
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use wayleave_resume_wire::{
    AgentHello, Attached, BODY_BYTES_MAX, Challenge, ClientHello, DATA_BYTES_MAX, DecodeError, Frame, Proof,
    Reattach, Refusal, Refused, Signed, StreamId, data_header,
};

fn signed() -> Signed {
    Signed { certificate: vec![0xce; 5], signature: vec![0x51; 3] }
}

fn frames() -> Vec<(&'static str, Frame)> {
    let stream = StreamId([7; 16]);
    vec![
        ("data", Frame::Data { bytes: 0x01_02_03 }),
        ("fin", Frame::Fin),
        ("reset", Frame::Reset),
        ("ask", Frame::Ask),
        ("acknowledge", Frame::Acknowledge { received: 258 }),
        ("ping", Frame::Ping { received: 1 }),
        ("pong", Frame::Pong { received: u64::MAX }),
        ("client hello", Frame::ClientHello(ClientHello { share: [1; 32], signed: signed() })),
        (
            "agent hello",
            Frame::AgentHello(AgentHello {
                share: [2; 32],
                stream,
                max_detached_ms: 300_000,
                proxies: vec!["a:1".into(), "b:2".into()],
                signed: signed(),
            }),
        ),
        ("not resumable", Frame::NotResumable { text: "no".into() }),
        ("reattach", Frame::Reattach(Reattach { stream, nonce: [3; 32], received: 9 })),
        ("challenge", Frame::Challenge(Challenge { nonce: [4; 32] })),
        ("proof", Frame::Proof(Proof { mac: [5; 32], signed: signed() })),
        ("attached", Frame::Attached(Attached { received: 10, mac: [6; 32] })),
        ("refused", Frame::Refused(Refused { refusal: Refusal::Denied, text: "no".into() })),
        ("refuser", Frame::Refuser(signed())),
    ]
}

fn encoded(frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out
}

#[test]
fn frames_look_as_the_golden_file_says() {
    let lines: Vec<String> = frames()
        .iter()
        .map(|(name, frame)| format!("{name}: {}", HEXLOWER.encode(&encoded(frame))))
        .collect();
    assert_eq!(lines.join("\n"), include_str!("../golden/frames_v1.txt").trim_end());
}

#[test]
fn frames_read_back_and_wait_for_their_last_byte() {
    for (name, frame) in frames() {
        let whole = encoded(&frame);
        for cut in 0..whole.len() {
            let mut part = BytesMut::from(&whole[..cut]);
            assert_eq!(Frame::decode(&mut part), Ok(None), "{name} cut at {cut}");
            assert_eq!(part.len(), cut, "{name}");
        }
        let mut input = whole;
        input.extend_from_slice(b"rest");
        assert_eq!(Frame::decode(&mut input), Ok(Some(frame)), "{name}");
        assert_eq!(&input[..], b"rest", "{name}");
    }
}

#[test]
fn the_header_of_data_is_its_frame() {
    assert_eq!(encoded(&Frame::Data { bytes: 70_000 })[..], data_header(70_000));
}

#[test]
fn f_lengths_over_the_bound_are_refused_by_the_header_alone() {
    let refused = |kind: u8, length: usize| {
        let mut header = data_header(length);
        header[0] = kind;
        Frame::decode(&mut BytesMut::from(&header[..]))
    };
    assert_eq!(refused(0, DATA_BYTES_MAX + 1), Err(DecodeError::TooLong(DATA_BYTES_MAX + 1)));
    assert_eq!(refused(16, BODY_BYTES_MAX + 1), Err(DecodeError::TooLong(BODY_BYTES_MAX + 1)));
    assert_eq!(refused(99, 0), Err(DecodeError::Kind(99)));
    assert_eq!(refused(1, 1), Ok(None));
}

#[test]
fn f_other_versions_trailing_bytes_and_short_bodies_are_refused() {
    for (name, frame) in frames() {
        let whole = encoded(&frame);
        if matches!(frame, Frame::Data { .. }) {
            continue;
        }
        let mut longer = whole.clone();
        longer.extend_from_slice(b"x");
        let length = longer.len() - 4;
        longer[1..4].copy_from_slice(&data_header(length)[1..]);
        assert!(Frame::decode(&mut longer).is_err(), "{name}");
        if whole.len() > 4 {
            let mut shorter = BytesMut::from(&whole[..whole.len() - 1]);
            let length = shorter.len() - 4;
            shorter[1..4].copy_from_slice(&data_header(length)[1..]);
            assert!(Frame::decode(&mut shorter).is_err(), "{name}");
        }
    }
    let mut hello = encoded(&Frame::Challenge(Challenge { nonce: [0; 32] }));
    hello[4] = 2;
    assert_eq!(Frame::decode(&mut hello), Err(DecodeError::Version(2)));
}

proptest! {
    #[test]
    fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let mut input = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = Frame::decode(&mut input) {}
    }

    #[test]
    fn f_damaged_frames_never_panic(pick in 0..16_usize, at in 0..200_usize, with in any::<u8>()) {
        let mut input = encoded(&frames()[pick].1);
        if let Some(byte) = input.get_mut(at) {
            *byte = with;
        }
        let _ = Frame::decode(&mut input);
    }
}

#[test]
fn a_long_text_is_cut_at_a_letter() {
    let text = "ü".repeat(2000);
    let mut input = encoded(&Frame::NotResumable { text });
    match Frame::decode(&mut input).unwrap() {
        Some(Frame::NotResumable { text }) => assert!(text.len() <= 1024 && text.chars().all(|c| c == 'ü')),
        other => panic!("{other:?}"),
    }
}
