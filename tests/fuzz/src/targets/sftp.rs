//! SFTP, as a server and as a client read it.

use super::SMALL;
use crate::Target;
use wayleave_sftp::{
    Attributes, Extension, FileSystem, Limits, Message, Name, OpenFlags, Output, Request, Response,
    SftpClient, StatusCode, frame,
};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "sftp_request", memory_bytes_max: SMALL, seeds: requests, run: request },
    Target { name: "sftp_reply", memory_bytes_max: SMALL, seeds: replies, run: reply },
];

fn requests() -> Vec<Vec<u8>> {
    let attributes = Attributes { permissions: Some(0o644), ..Attributes::default() };
    let flags = OpenFlags { write: true, create: true, ..OpenFlags::default() };
    let all = [
        Request::Open { path: b"/tmp/a", flags, attributes },
        Request::Read { handle: b"1234", offset: 7, length: 32768 },
        Request::Write { handle: b"1234", offset: 7, data: &[7; 100] },
        Request::Rename { from: b"a", to: b"b" },
        Request::Setstat { path: b"a", attributes },
        Request::Extended(Extension::PosixRename { from: b"a", to: b"b" }),
        Request::Extended(Extension::Limits),
    ];
    let mut stream = SftpClient::default().take_output();
    let mut seeds = Vec::new();
    for (id, request) in (0..).zip(&all) {
        let mut one = Vec::new();
        request.encode(id, &mut one);
        stream.extend_from_slice(&one);
        seeds.push(one);
    }
    seeds.push(stream);
    seeds
}

fn request(mut bytes: &[u8]) {
    while let Ok(Some(frame)) = frame::split(bytes) {
        let _ = Message::decode(frame.packet);
        bytes = frame.rest;
    }
    let _ = Message::decode(bytes);
}

fn replies() -> Vec<Vec<u8>> {
    let mut output = Output::default();
    output.version();
    output.status(1, StatusCode::NoSuchFile, "no");
    output.handle(2, &[1, 2, 3, 4]);
    output.attributes(3, &Attributes::default());
    let name = Name { name: b"a".to_vec(), longname: b"-rw a".to_vec(), attributes: Attributes::default() };
    output.names(4, &[name.clone(), name]);
    let stream = output.as_bytes().to_vec();
    let mut seeds = vec![stream.clone()];
    let mut rest = stream.as_slice();
    while let Ok(Some(frame)) = frame::split(rest) {
        seeds.push(frame.packet.to_vec());
        rest = frame.rest;
    }
    seeds
}

fn reply(bytes: &[u8]) {
    let _ = Response::decode(bytes);
    let _ = FileSystem::decode(bytes);
    let _ = Limits::decode(bytes);
    let mut client = SftpClient::default();
    client.handle_data(bytes);
    while let Ok(Some(_)) = client.poll_event() {
        let _ = client.request(&Request::Stat { path: b"a" });
    }
}
