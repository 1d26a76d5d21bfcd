//! The codec against itself, against bytes written by hand, and against noise.

#![expect(clippy::unwrap_used, reason = "tests; clippy does not see that of their helpers")]

use proptest::prelude::*;
use wayleave_sftp::{
    Attributes, BadRequest, ClientError, ClientEvent, DATA_BYTES_MAX, Download, DownloadStep, Extension,
    FileSystem, Limits, Malformed, Message, Name, OpenFlags, Output, Owner, PATH_BYTES_MAX, Reply, Request,
    Response, ResponseBody, SftpClient, Status, StatusCode, Times, Upload, frame,
};

fn attributes() -> impl Strategy<Value = Attributes> {
    let owner = any::<(u32, u32)>().prop_map(|(uid, gid)| Owner { uid, gid });
    let times = any::<(u32, u32)>().prop_map(|(accessed, modified)| Times { accessed, modified });
    (any::<Option<u64>>(), proptest::option::of(owner), any::<Option<u32>>(), proptest::option::of(times))
        .prop_map(|(size, owner, permissions, times)| Attributes { size, owner, permissions, times })
}

fn flags() -> impl Strategy<Value = OpenFlags> {
    any::<[bool; 6]>().prop_map(|[read, write, append, create, truncate, exclusive]| OpenFlags {
        read,
        write,
        append,
        create,
        truncate,
        exclusive,
    })
}

/// Every request, built from the same random parts.
fn requests<'a>(
    first: &'a [u8],
    second: &'a [u8],
    attributes: Attributes,
    flags: OpenFlags,
    number: u64,
) -> Vec<Request<'a>> {
    let (path, handle) = (first, second);
    vec![
        Request::Open { path, flags, attributes },
        Request::Close { handle },
        Request::Read { handle, offset: number, length: number as u32 },
        Request::Write { handle, offset: number, data: first },
        Request::Lstat { path },
        Request::Fstat { handle },
        Request::Setstat { path, attributes },
        Request::Fsetstat { handle, attributes },
        Request::Opendir { path },
        Request::Readdir { handle },
        Request::Remove { path },
        Request::Mkdir { path, attributes },
        Request::Rmdir { path },
        Request::Realpath { path },
        Request::Stat { path },
        Request::Rename { from: first, to: second },
        Request::Readlink { path },
        Request::Symlink { target: first, link: second },
        Request::Extended(Extension::PosixRename { from: first, to: second }),
        Request::Extended(Extension::Statvfs { path }),
        Request::Extended(Extension::Fstatvfs { handle }),
        Request::Extended(Extension::Hardlink { from: first, to: second }),
        Request::Extended(Extension::Fsync { handle }),
        Request::Extended(Extension::Lsetstat { path, attributes }),
        Request::Extended(Extension::Limits),
        Request::Extended(Extension::ExpandPath { path }),
        Request::UnknownExtension { name: "other@example.com" },
    ]
}

proptest! {
    #[test]
    fn requests_survive_the_wire(
        first in proptest::collection::vec(any::<u8>(), 0..300),
        second in proptest::collection::vec(any::<u8>(), 0..300),
        attributes in attributes(),
        flags in flags(),
        (number, id) in any::<(u64, u32)>(),
    ) {
        for request in requests(&first, &second, attributes, flags, number) {
            let mut bytes = Vec::new();
            request.encode(id, &mut bytes);
            let frame = frame::split(&bytes).unwrap().unwrap();
            prop_assert_eq!(frame.rest, &[][..]);
            prop_assert_eq!(Message::decode(frame.packet), Ok(Message::Request { id, request }));
            // Cut anywhere it is refused.
            for cut in 0..frame.packet.len() {
                let cut_off = Message::decode(&frame.packet[..cut]);
                let is_unknown = matches!(request, Request::UnknownExtension { .. });
                prop_assert!(is_unknown || cut_off.is_err());
            }
        }
    }

    #[test]
    fn replies_survive_the_wire(
        bytes in proptest::collection::vec(any::<u8>(), 1..256),
        attributes in attributes(),
        numbers in any::<[u64; 11]>(),
        id in any::<u32>(),
    ) {
        let names = vec![Name { name: bytes.clone(), longname: bytes.clone(), attributes }; 3];
        let [a, b, c, d, e, f, g, h, i, j, k] = numbers;
        let state = FileSystem {
            block_bytes: a, fragment_bytes: b, blocks: c, blocks_free: d, blocks_available: e, files: f,
            files_free: g, files_available: h, id: i, flags: j, name_bytes_max: k,
        };
        let limits = Limits { packet_bytes: a, read_bytes: b, write_bytes: c, handles: d };
        let mut output = Output::default();
        output.handle(id, &bytes);
        output.data(id, 300, |slot| { slot[..bytes.len()].copy_from_slice(&bytes); Ok::<_, ()>(bytes.len()) }).unwrap();
        output.names(id, &names);
        output.attributes(id, &attributes);
        output.status(id, StatusCode::NoSuchFile, "gone");
        output.file_system(id, &state);
        output.limits(id, &limits);

        let status = Status { code: StatusCode::NoSuchFile, message: "gone".to_owned() };
        let mut rest = output.as_bytes();
        for expected in [
            ResponseBody::Handle(&bytes), ResponseBody::Data(&bytes), ResponseBody::Names(names),
            ResponseBody::Attributes(attributes), ResponseBody::Status(status),
        ] {
            let frame = frame::split(rest).unwrap().unwrap();
            prop_assert_eq!(Response::decode(frame.packet), Ok(Response::Reply { id, body: expected }));
            rest = frame.rest;
        }
        for is_state in [true, false] {
            let frame = frame::split(rest).unwrap().unwrap();
            let Ok(Response::Reply { body: ResponseBody::Extended(extended), .. }) = Response::decode(frame.packet)
            else { panic!("no extended reply") };
            if is_state {
                prop_assert_eq!(FileSystem::decode(extended), Ok(state));
            } else {
                prop_assert_eq!(Limits::decode(extended), Ok(limits));
            }
            rest = frame.rest;
        }
        prop_assert!(rest.is_empty());
    }

    #[test]
    fn f_arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let _ = frame::split(&bytes);
        let _ = Message::decode(&bytes);
        let _ = Response::decode(&bytes);
        let _ = FileSystem::decode(&bytes);
        let _ = Limits::decode(&bytes);
    }

    #[test]
    fn f_known_types_with_arbitrary_bodies_never_panic(
        kind in prop_oneof![1_u8..=20, 101_u8..=105, 200_u8..=201],
        body in proptest::collection::vec(prop_oneof![Just(0), Just(1), Just(255), any::<u8>()], 0..200),
    ) {
        let packet = [&[kind][..], &body].concat();
        let _ = Message::decode(&packet);
        let _ = Response::decode(&packet);
    }

    #[test]
    fn f_a_client_survives_an_arbitrary_server(bytes in proptest::collection::vec(any::<u8>(), 0..400), split in 0_usize..400) {
        let mut client = greeted();
        let _ = client.request(&Request::Stat { path: b"x" });
        let (first, second) = bytes.split_at(split.min(bytes.len()));
        for part in [first, second] {
            client.handle_data(part);
            while let Ok(Some(_)) = client.poll_event() {}
        }
    }

    #[test]
    fn a_download_is_exact_whatever_the_server_cuts(
        content in proptest::collection::vec(any::<u8>(), 0..5000),
        size_told in 0_u64..6000,
        part_bytes in 1_u32..700,
        seed in any::<u64>(),
    ) {
        prop_assert_eq!(downloaded(&content, size_told, part_bytes, seed), content);
    }
}

/// A client that has been greeted by a server without extensions.
fn greeted() -> SftpClient {
    let mut client = SftpClient::default();
    client.handle_data(&[0, 0, 0, 5, 2, 0, 0, 0, 3]);
    assert_eq!(client.poll_event(), Ok(Some(ClientEvent::Ready)));
    assert_eq!(client.take_output(), [0, 0, 0, 5, 1, 0, 0, 0, 3]);
    client
}

/// Downloads from a server that answers in any order and gives less than asked.
fn downloaded(content: &[u8], size_told: u64, part_bytes: u32, mut seed: u64) -> Vec<u8> {
    let mut client = greeted();
    let mut download = Download::new(bytes::Bytes::from_static(b"h"), size_told, part_bytes);
    let mut waiting: Vec<(u32, usize, usize)> = Vec::new();
    let mut got = vec![None; content.len()];
    download.request(&mut client).unwrap();
    while !download.is_done() {
        let sent = client.take_output();
        let mut rest = &sent[..];
        while let Some(frame) = frame::split(rest).unwrap() {
            let Ok(Message::Request { id, request: Request::Read { offset, length, .. } }) =
                Message::decode(frame.packet)
            else {
                panic!("no read")
            };
            waiting.push((id, usize::try_from(offset).unwrap(), usize::try_from(length).unwrap()));
            rest = frame.rest;
        }
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let pick = usize::try_from(seed >> 40).unwrap();
        let (id, offset, length) = waiting.swap_remove(pick % waiting.len());
        let there = content.get(offset..).unwrap_or_default();
        let count = there.len().min(length).min(1 + pick % 500);
        let mut output = Output::default();
        if count == 0 {
            output.status(id, StatusCode::EndOfFile, "");
        } else {
            output
                .data(id, length as u32, |slot| {
                    slot[..count].copy_from_slice(&there[..count]);
                    Ok::<_, ()>(count)
                })
                .unwrap();
        }
        client.handle_data(output.as_bytes());
        while let Some(event) = client.poll_event().unwrap() {
            let ClientEvent::Reply { id, reply } = event else { panic!("no reply") };
            match download.handle_reply(id, reply) {
                DownloadStep::Write { offset, data } => {
                    for (place, byte) in got[usize::try_from(offset).unwrap()..].iter_mut().zip(data) {
                        assert!(place.replace(byte).is_none(), "a byte came twice");
                    }
                }
                DownloadStep::Nothing => {}
                step => panic!("{step:?}"),
            }
        }
        download.request(&mut client).unwrap();
    }
    assert_eq!(client.in_flight(), 0);
    got.into_iter().map(|byte| byte.expect("every byte came")).collect()
}

#[test]
fn f_declared_counts_are_checked_before_anything_is_allocated() {
    let many = u32::MAX.to_be_bytes();
    let names = [&[104, 0, 0, 0, 1][..], &many].concat();
    assert_eq!(Response::decode(&names), Err(Malformed::TooMany));
    let string = [&[17, 0, 0, 0, 1][..], &many].concat();
    assert_eq!(Message::decode(&string), Err(BadRequest { id: Some(1), reason: Malformed::Truncated }));
    let extended = [&[105, 0, 0, 0, 1, 0x80, 0, 0, 0][..], &many].concat();
    assert_eq!(Response::decode(&extended), Err(Malformed::TooMany));
    let extensions = [&[1, 0, 0, 0, 3][..], &[0; 8 * 100]].concat();
    assert!(matches!(Message::decode(&extensions), Err(BadRequest { id: None, reason: Malformed::TooMany })));
}

#[test]
fn f_paths_and_data_have_bounds() {
    let long = vec![b'x'; PATH_BYTES_MAX + 1];
    let mut bytes = Vec::new();
    Request::Stat { path: &long }.encode(7, &mut bytes);
    let packet = frame::split(&bytes).unwrap().unwrap().packet;
    assert_eq!(Message::decode(packet), Err(BadRequest { id: Some(7), reason: Malformed::PathTooLong }));

    let mut client = greeted();
    let data = vec![0; DATA_BYTES_MAX];
    let mut upload = Upload::new(bytes::Bytes::from_static(b"12345678"));
    upload.write(&mut client, &data).unwrap();
    assert_eq!(frame::split(&client.take_output()).unwrap().map(|frame| frame.rest.len()), Some(0));
    assert_eq!(upload.write(&mut client, &vec![0; 2 * DATA_BYTES_MAX]), Err(ClientError::TooLong));
    assert!(client.take_output().is_empty());
}

#[test]
fn a_reply_of_another_kind_or_number_is_refused() {
    for bytes in [
        &[0, 0, 0, 9, 105, 0, 0, 0, 9, 0, 0, 0, 0][..], // not asked
        &[0, 0, 0, 9, 102, 0, 0, 0, 0, 0, 0, 0, 0],     // a handle for a stat
        &[0, 0, 0, 9, 103, 0, 0, 0, 0, 0, 0, 0, 0],     // data for a stat
        &[0, 0, 0, 5, 2, 0, 0, 0, 3],                   // a second hello
    ] {
        let mut client = greeted();
        client.request(&Request::Stat { path: b"x" }).unwrap();
        client.handle_data(bytes);
        assert_eq!(client.poll_event(), Err(ClientError::OutOfOrder), "{bytes:?}");
    }
}

#[test]
fn a_banner_is_told_apart_from_sftp() {
    let mut client = SftpClient::default();
    client.handle_data(b"Welcome to this machine!\r\n");
    assert!(matches!(client.poll_event(), Err(ClientError::NotSftp(_))));
}

#[test]
fn a_servers_sentence_cannot_drive_the_terminal() {
    let mut client = greeted();
    let id = client.request(&Request::Stat { path: b"x" }).unwrap();
    let mut output = Output::default();
    output.status(0, StatusCode::Failure, "\u{1b}]0;owned\u{7}bad\r\nnews");
    client.handle_data(output.as_bytes());

    let status = Status { code: StatusCode::Failure, message: "]0;ownedbadnews".to_owned() };
    assert_eq!(client.poll_event(), Ok(Some(ClientEvent::Reply { id, reply: Reply::Status(status) })));
}

#[test]
fn the_number_in_flight_is_bounded() {
    let mut client = greeted();
    let made = (0..10_000).take_while(|_| client.request(&Request::Stat { path: b"x" }).is_ok()).count();
    assert_eq!((made, client.in_flight()), (1024, 1024));
}

#[test]
fn known_packets_are_read_as_openssh_means_them() {
    // SSH_FXP_SYMLINK of the stock client for `ln -s target link`: the target comes first.
    let symlink = b"\x14\x00\x00\x00\x02\x00\x00\x00\x06target\x00\x00\x00\x04link";
    let expected = Request::Symlink { target: b"target", link: b"link" };
    assert_eq!(Message::decode(symlink), Ok(Message::Request { id: 2, request: expected }));

    let open = b"\x03\x00\x00\x00\x01\x00\x00\x00\x01f\x00\x00\x00\x1a\x00\x00\x00\x04\x00\x00\x01\xa4";
    let flags = OpenFlags { write: true, create: true, truncate: true, ..OpenFlags::default() };
    let attributes = Attributes { permissions: Some(0o644), ..Attributes::default() };
    let expected = Request::Open { path: b"f", flags, attributes };
    assert_eq!(Message::decode(open), Ok(Message::Request { id: 1, request: expected }));
}
