//! The SFTP server under the stock client and under ours.

use crate::harness::{
    block_on, cases, is_root, launcher, open_directory, other_account, own_account, path_text, spec,
};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use wayleave_os::{Account, Child, ChildStreams, Exit, Work};
use wayleave_sftp::{
    Attributes, ClientEvent, Download, DownloadStep, Extension, OpenFlags, PATH_BYTES_MAX, Reply, Request,
    SftpClient, Status, StatusCode, Upload,
};

cases![
    stock_client_moves_a_large_file_both_ways,
    stock_client_works_with_files_and_directories,
    stock_client_lists_as_ls_does,
    stock_client_resumes_an_upload,
    a_file_goes_up_and_down_as_the_user,
    h_links_to_files_of_root_stay_closed,
    a_rename_does_not_replace_but_a_posix_rename_does,
    f_handles_are_bounded_and_checked,
    f_long_and_strange_paths_are_answered,
    f_garbage_ends_the_server_and_nothing_else,
    a_large_directory_comes_in_parts,
];

/// Runs the stock client on our server in `directory`; it must succeed.
fn stock(directory: &Path, batch: &str) -> String {
    let file = directory.join(".batch");
    std::fs::write(&file, batch).unwrap();
    let server = format!("{} {}", path_text(&std::env::current_exe().unwrap()), crate::SERVE_ARGUMENT);
    let output = std::process::Command::new("timeout")
        .args(["60", "sftp", "-b", ".batch", "-D", &server])
        .current_dir(directory)
        .output()
        .unwrap();
    std::fs::remove_file(&file).unwrap();
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}\n{errors}");
    text.into_owned()
}

fn some_bytes(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut bytes = Vec::with_capacity(count + 4);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

fn stock_client_moves_a_large_file_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    let content = some_bytes(20_000_003);
    std::fs::write(directory.path().join("a"), &content).unwrap();

    stock(directory.path(), "put a b\nget b c\nput -f a d\n");

    for copy in ["b", "c", "d"] {
        assert!(std::fs::read(directory.path().join(copy)).unwrap() == content, "{copy}");
    }
}

fn stock_client_works_with_files_and_directories() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("a"), "text").unwrap();

    let text = stock(
        directory.path(),
        "mkdir d\nput -p a d/b\nchmod 600 d/b\nln -s b d/link\nln d/b d/hard\nrename d/b d/c\nget d/hard again\n\
         rm d/link\nmkdir d/e\nrmdir d/e\ndf\npwd\n",
    );

    assert_eq!(std::fs::read_to_string(at("again")).unwrap(), "text");
    let moved = std::fs::metadata(at("d/c")).unwrap();
    assert_eq!((moved.mode() & 0o777, moved.nlink()), (0o600, 2));
    assert_eq!(moved.mtime(), std::fs::metadata(at("a")).unwrap().mtime());
    for gone in ["d/b", "d/e", "d/link"] {
        assert!(at(gone).symlink_metadata().is_err(), "{gone}");
    }
    assert!(text.contains(&format!("Remote working directory: {}", path_text(directory.path()))), "{text}");
}

fn stock_client_lists_as_ls_does() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("plain"), "12345").unwrap();
    std::fs::set_permissions(directory.path().join("plain"), PermissionsExt::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink("plain", directory.path().join("link")).unwrap();
    let ls = std::process::Command::new("ls")
        .args(["-l", "plain"])
        .current_dir(directory.path())
        .output()
        .unwrap();
    let expected = String::from_utf8(ls.stdout).unwrap();

    let text = stock(directory.path(), "ls -la\n");

    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let line = |name: &str| {
        words(text.lines().find(|line| line.ends_with(name)).unwrap_or_else(|| panic!("{text}")))
    };
    // In another locale `ls` writes the time in other words.
    let (ours, theirs) = (line(" plain"), words(&expected));
    assert_eq!(ours.get(..5), theirs.get(..5), "{text}");
    assert!(line(" link").first().unwrap().starts_with("lrwxrwxrwx"), "{text}");
    for name in [" .", " .."] {
        assert!(line(name).first().unwrap().starts_with('d'), "{text}");
    }
}

fn stock_client_resumes_an_upload() {
    let directory = tempfile::tempdir().unwrap();
    let content = some_bytes(3_000_000);
    std::fs::write(directory.path().join("a"), &content).unwrap();
    std::fs::write(directory.path().join("b"), &content[..1_000_000]).unwrap();

    stock(directory.path(), "put -a a b\n");

    assert!(std::fs::read(directory.path().join("b")).unwrap() == content);
}

/// Our client on a server that runs as a user.
struct Connected {
    client: SftpClient,
    child: Child,
    stdin: pipe::Sender,
    stdout: pipe::Receiver,
    _stderr: pipe::Receiver,
}

impl Connected {
    async fn open(account: Account) -> Self {
        let (child, streams) = launcher().spawn(spec(account, Work::Sftp)).await.unwrap();
        let ChildStreams::Pipes { stdin, stdout, stderr } = streams else { panic!("no pipes") };
        let mut connected = Self { client: SftpClient::default(), child, stdin, stdout, _stderr: stderr };
        assert_eq!(connected.event().await, ClientEvent::Ready);
        connected
    }

    async fn event(&mut self) -> ClientEvent {
        loop {
            if let Some(event) = self.client.poll_event().unwrap() {
                return event;
            }
            self.stdin.write_all(&self.client.take_output()).await.unwrap();
            let mut buffer = vec![0; 65536];
            let count = self.stdout.read(&mut buffer).await.unwrap();
            assert_ne!(count, 0, "the server ended");
            self.client.handle_data(&buffer[..count]);
        }
    }

    async fn ask(&mut self, request: Request<'_>) -> Reply {
        let asked = self.client.request(&request).unwrap();
        let ClientEvent::Reply { id, reply } = self.event().await else { panic!("no reply") };
        assert_eq!(id, asked);
        reply
    }

    async fn code(&mut self, request: Request<'_>) -> StatusCode {
        match self.ask(request).await {
            Reply::Status(Status { code, .. }) => code,
            other => panic!("{request:?}: {other:?}"),
        }
    }

    async fn handle(&mut self, request: Request<'_>) -> bytes::Bytes {
        match self.ask(request).await {
            Reply::Handle(handle) => handle,
            other => panic!("{other:?}"),
        }
    }

    async fn finish(self) {
        let Self { mut child, stdin, stdout, .. } = self;
        drop((stdin, stdout));
        assert_eq!(child.wait().await.unwrap(), Exit::Code(0));
    }
}

const READ: OpenFlags =
    OpenFlags { read: true, write: false, append: false, create: false, truncate: false, exclusive: false };
const CREATE: OpenFlags = OpenFlags { read: false, write: true, create: true, truncate: true, ..READ };

fn open(path: &[u8], flags: OpenFlags) -> Request<'_> {
    Request::Open { path, flags, attributes: Attributes::default() }
}

fn bytes_of(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().to_vec()
}

/// A directory that the account owns and can reach.
fn directory_of(account: &Account) -> tempfile::TempDir {
    let directory = open_directory();
    std::os::unix::fs::chown(directory.path(), Some(account.uid()), Some(account.gid())).unwrap();
    directory
}

fn a_file_goes_up_and_down_as_the_user() {
    block_on(async {
        let account = other_account();
        let directory = directory_of(&account);
        let path = directory.path().join("file");
        let content = some_bytes(9_000_001);
        let mut connected = Connected::open(account.clone()).await;
        let part_bytes = usize::try_from(connected.client.limits().write_bytes).unwrap();

        let handle = connected.handle(open(&bytes_of(&path), CREATE)).await;
        let mut upload = Upload::new(handle.clone());
        let mut parts = content.chunks(part_bytes);
        loop {
            while upload.has_room() {
                let Some(part) = parts.next() else { break };
                upload.write(&mut connected.client, part).unwrap();
            }
            if upload.is_idle() {
                break;
            }
            let ClientEvent::Reply { id, reply } = connected.event().await else { panic!("no reply") };
            assert_eq!(upload.handle_reply(id, reply), Ok(None));
        }
        assert_eq!(connected.code(Request::Close { handle: &handle }).await, StatusCode::Ok);

        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (account.uid(), 0o644));
        assert!(std::fs::read(&path).unwrap() == content);
        assert!(download(&mut connected, &bytes_of(&path)).await == content);
        connected.finish().await;
    });
}

async fn download(connected: &mut Connected, path: &[u8]) -> Vec<u8> {
    let handle = connected.handle(open(path, READ)).await;
    let Reply::Attributes(attributes) = connected.ask(Request::Fstat { handle: &handle }).await else {
        panic!("no attributes")
    };
    let mut content = vec![0; usize::try_from(attributes.size.unwrap()).unwrap()];
    let mut download = Download::new(handle, attributes.size.unwrap(), connected.client.limits().read_bytes);
    download.request(&mut connected.client).unwrap();
    while !download.is_done() {
        let ClientEvent::Reply { id, reply } = connected.event().await else { panic!("no reply") };
        match download.handle_reply(id, reply) {
            DownloadStep::Write { offset, data } => {
                let offset = usize::try_from(offset).unwrap();
                content[offset..offset + data.len()].copy_from_slice(&data);
            }
            DownloadStep::Nothing => {}
            step => panic!("{step:?}"),
        }
        download.request(&mut connected.client).unwrap();
    }
    content
}

fn h_links_to_files_of_root_stay_closed() {
    if !is_root() {
        return;
    }
    block_on(async {
        let account = other_account();
        let directory = directory_of(&account);
        let closed = tempfile::tempdir().unwrap();
        std::fs::set_permissions(closed.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let canary = closed.path().join("canary");
        std::fs::write(&canary, "canary-of-root").unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&canary, &link).unwrap();
        let (canary_path, link_path) = (bytes_of(&canary), bytes_of(&link));
        let mut connected = Connected::open(account).await;

        for path in [canary_path.as_slice(), &link_path, b"/etc/shadow", b"/proc/1/environ"] {
            let code = connected.code(open(path, READ)).await;
            assert_eq!(code, StatusCode::PermissionDenied, "{}", String::from_utf8_lossy(path));
        }
        for refused in [
            open(&link_path, CREATE),
            Request::Setstat {
                path: &link_path,
                attributes: Attributes { size: Some(0), ..Attributes::default() },
            },
            Request::Remove { path: &canary_path },
            Request::Opendir { path: &bytes_of(closed.path()) },
            Request::Rename { from: &link_path, to: b"/etc/link" },
            Request::Mkdir { path: b"/etc/of-nobody", attributes: Attributes::default() },
        ] {
            assert_eq!(connected.code(refused).await, StatusCode::PermissionDenied, "{refused:?}");
        }
        assert_eq!(std::fs::read_to_string(&canary).unwrap(), "canary-of-root");
        connected.finish().await;
    });
}

fn a_rename_does_not_replace_but_a_posix_rename_does() {
    block_on(async {
        let directory = directory_of(&own_account());
        let at = |name: &str| bytes_of(&directory.path().join(name));
        std::fs::write(directory.path().join("a"), "a").unwrap();
        std::fs::write(directory.path().join("b"), "b").unwrap();
        let (a, b) = (at("a"), at("b"));
        let mut connected = Connected::open(own_account()).await;

        assert_eq!(connected.code(Request::Rename { from: &a, to: &b }).await, StatusCode::Failure);
        let replacing = Request::Extended(Extension::PosixRename { from: &a, to: &b });
        assert_eq!(connected.code(replacing).await, StatusCode::Ok);

        assert_eq!(std::fs::read_to_string(directory.path().join("b")).unwrap(), "a");
        connected.finish().await;
    });
}

fn f_handles_are_bounded_and_checked() {
    block_on(async {
        let mut connected = Connected::open(own_account()).await;
        let mut handles = Vec::new();
        let refused = loop {
            match connected.ask(open(b"/dev/null", READ)).await {
                Reply::Handle(handle) => handles.push(handle),
                Reply::Status(status) => break status,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!((handles.len(), refused.code), (512, StatusCode::Failure));

        let first = handles.first().unwrap().clone();
        assert_eq!(connected.code(Request::Readdir { handle: &first }).await, StatusCode::Failure);
        assert_eq!(connected.code(Request::Close { handle: &first }).await, StatusCode::Ok);
        let again = connected.handle(open(b"/dev/null", READ)).await;
        assert_ne!(again, first);
        for void in [&first[..], b"", b"12345678", &[255; 300]] {
            let read = Request::Read { handle: void, offset: 0, length: u32::MAX };
            assert_eq!(connected.code(read).await, StatusCode::Failure);
        }
        let endless = Request::Read { handle: &again, offset: u64::MAX, length: u32::MAX };
        assert_ne!(connected.code(endless).await, StatusCode::Ok);
        connected.finish().await;
    });
}

fn f_long_and_strange_paths_are_answered() {
    block_on(async {
        let mut connected = Connected::open(other_account()).await;
        let long = vec![b'x'; PATH_BYTES_MAX + 1];
        for (path, expected) in [
            (&long[..], StatusCode::BadMessage),
            (&long[..PATH_BYTES_MAX], StatusCode::BadMessage),
            (b"a\0b", StatusCode::BadMessage),
            (b"/no/such", StatusCode::NoSuchFile),
        ] {
            assert_eq!(connected.code(Request::Stat { path }).await, expected);
        }
        let unknown = Request::UnknownExtension { name: "no@such" };
        assert_eq!(connected.code(unknown).await, StatusCode::Unsupported);
        for (path, expected) in [(&b"~"[..], "/"), (b"", "/"), (b"/usr/../tmp", "/tmp")] {
            let request = match path {
                b"~" => Request::Extended(Extension::ExpandPath { path: b"~root/.." }),
                path => Request::Realpath { path },
            };
            let Reply::Names(names) = connected.ask(request).await else { panic!("no name") };
            assert_eq!(names.first().unwrap().name, expected.as_bytes());
        }
        connected.finish().await;
    });
}

fn f_garbage_ends_the_server_and_nothing_else() {
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0, 0, 0, 0],
        &[255; 8],
        &[0, 0, 0, 5, 17, 0, 0, 0, 1],
        &[0, 0, 0, 5, 1, 0, 0, 0, 2],
    ] {
        block_on(async {
            let (mut child, streams) = launcher().spawn(spec(own_account(), Work::Sftp)).await.unwrap();
            let ChildStreams::Pipes { mut stdin, mut stdout, stderr: _stderr } = streams else {
                panic!("no pipes")
            };
            stdin.write_all(garbage).await.unwrap();
            let mut answer = Vec::new();
            stdout.read_to_end(&mut answer).await.unwrap();
            assert_eq!((answer.len(), child.wait().await.unwrap()), (0, Exit::Code(1)), "{garbage:?}");
        });
    }
}

fn a_large_directory_comes_in_parts() {
    block_on(async {
        let directory = directory_of(&own_account());
        for number in 0..1000 {
            std::fs::write(directory.path().join(format!("file-{number}")), "").unwrap();
        }
        let mut connected = Connected::open(own_account()).await;
        let handle = connected.handle(Request::Opendir { path: &bytes_of(directory.path()) }).await;

        let mut names = std::collections::BTreeSet::new();
        let end = loop {
            match connected.ask(Request::Readdir { handle: &handle }).await {
                Reply::Names(part) => names.extend(part.into_iter().map(|name| name.name)),
                Reply::Status(status) => break status.code,
                other => panic!("{other:?}"),
            }
        };

        assert_eq!((names.len(), end), (1002, StatusCode::EndOfFile));
        connected.finish().await;
    });
}
