//! Files by stock clients: sftp, scp by both protocols, rsync, Ansible, and `way scp`.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use wayleave_scenario::{Cluster, check_all};

#[test]
fn files_by_stock_clients() {
    let cluster = Cluster::builder("ssh_files").proxies(2).nodes(&["web-1"]).peering(1).start();
    check_all!(&cluster;
        sftp_does_what_people_do,
        sftp_moves_much_and_resumes,
        scp_copies_by_sftp,
        scp_copies_by_its_old_protocol,
        way_scp_copies,
        rsync_copies_and_updates,
        h_files_are_made_by_the_account_that_was_entered,
        what_cannot_be_read_is_told,
        ansible_runs_over_the_printed_configuration,
    );
}

/// A new directory of the scene with a tree to copy in `from`.
fn tree(cluster: &Cluster, name: &str) -> PathBuf {
    let root = cluster.scene.path(name);
    let from = root.join("from");
    fs::create_dir_all(from.join("deep/er")).unwrap();
    fs::write(from.join("small"), "small\n").unwrap();
    fs::write(from.join("with a blank and 'quote'"), "odd\n").unwrap();
    fs::write(from.join("empty"), "").unwrap();
    fs::write(from.join("deep/er/large"), large()).unwrap();
    fs::set_permissions(from.join("small"), fs::Permissions::from_mode(0o751)).unwrap();
    root
}

fn large() -> Vec<u8> {
    (0..8_000_000_u32).map(|i| i.wrapping_mul(2_246_822_519).to_le_bytes()[2]).collect()
}

#[track_caller]
fn assert_same_tree(from: &Path, to: &Path) {
    for name in ["small", "with a blank and 'quote'", "empty", "deep/er/large"] {
        let (sent, received) = (fs::read(from.join(name)).unwrap(), fs::read(to.join(name)));
        assert!(received.is_ok_and(|bytes| bytes == sent), "{name} differs in {}", to.display());
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn sftp_does_what_people_do(cluster: &Cluster) {
    let root = tree(cluster, "sftp");
    symlink("small", root.join("from/link")).unwrap();
    let batch = format!(
        "cd {root}\nlcd {root}\nmkdir to\nput -p from/small to/small\nput from/empty to/\nrename to/empty to/renamed\n\
         ls -la to\nchmod 600 to/renamed\nsymlink small to/link\nget to/link fetched\nmkdir to/gone\nrmdir to/gone\n\
         put from/small to/removed\nrm to/removed\ndf to\n-get to/missing nothing\npwd\n",
        root = root.display()
    );
    let ssh = cluster.ssh(&cluster.identity(), 0);
    let output = ssh.program("sftp").args(["-b", "-"]).arg(ssh.target("root", "web-1")).input(batch).output();
    let output = output.succeeded();
    assert!(output.stdout_text().contains("renamed"), "{output}");
    let to = root.join("to");
    assert_eq!(fs::read(to.join("small")).unwrap(), b"small\n");
    assert_eq!(mode(&to.join("small")), 0o751);
    assert_eq!(mode(&to.join("renamed")), 0o600);
    assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("small"));
    assert_eq!(fs::read(root.join("fetched")).unwrap(), b"small\n");
    assert!(!to.join("gone").exists() && !to.join("removed").exists() && !root.join("nothing").exists());
}

fn sftp_moves_much_and_resumes(cluster: &Cluster) {
    let root = tree(cluster, "sftp-much");
    let ssh = cluster.ssh(&cluster.identity(), 1);
    fs::write(root.join("part"), &large()[..1_000_000]).unwrap();
    let batch = format!(
        "cd {root}\nlcd {root}\nput -r from to\nget -r to back\nreput from/deep/er/large part\n",
        root = root.display()
    );
    let sftp = ssh.program("sftp").args(["-b", "-"]).arg(ssh.target("root", "web-1"));
    let _done = sftp.input(batch).output().succeeded();
    assert_same_tree(&root.join("from"), &root.join("to"));
    assert_same_tree(&root.join("from"), &root.join("back"));
    assert!(fs::read(root.join("part")).unwrap() == large());
}

fn scp_copies_by_sftp(cluster: &Cluster) {
    copy_both_ways(cluster, "scp-sftp", &["-s"]);
}

fn scp_copies_by_its_old_protocol(cluster: &Cluster) {
    copy_both_ways(cluster, "scp-old", &["-O"]);
}

fn copy_both_ways(cluster: &Cluster, name: &str, options: &[&str]) {
    let root = tree(cluster, name);
    let ssh = cluster.ssh(&cluster.identity(), 0);
    let remote = |path: &str| format!("{}:{}/{path}", ssh.target("root", "web-1"), root.display());
    let scp = || ssh.program("scp").args(options).args(["-p", "-r"]);
    let _done = scp().arg(root.join("from")).arg(remote("to")).output().succeeded();
    assert_same_tree(&root.join("from"), &root.join("to"));
    assert_eq!(mode(&root.join("to/small")), 0o751);
    let _done = scp().arg(remote("to")).arg(root.join("back")).output().succeeded();
    assert_same_tree(&root.join("from"), &root.join("back"));
    let _failed =
        scp().arg(remote("missing")).arg(root.join("nothing")).output().failed().complaining("no such file");
}

fn way_scp_copies(cluster: &Cluster) {
    let root = tree(cluster, "way-scp");
    let remote = |path: &str| format!("root@web-1:{}/{path}", root.display());
    let scp = || cluster.way(&cluster.identity(), 1).args(["scp", "-r"]);
    let _done = scp().arg(root.join("from")).arg(remote("to")).output().succeeded();
    assert_same_tree(&root.join("from"), &root.join("to"));
    let _done = scp().arg(remote("to")).arg(root.join("back")).output().succeeded();
    assert_same_tree(&root.join("from"), &root.join("back"));
    let _failed =
        scp().arg(remote("missing")).arg(root.join("nothing")).output().failed().complaining("missing");
}

fn rsync_copies_and_updates(cluster: &Cluster) {
    let root = tree(cluster, "rsync");
    let ssh = cluster.ssh(&cluster.identity(), 1);
    let shell = format!("ssh -F {} -o BatchMode=yes", ssh.config().display());
    let remote = |path: &str| format!("{}:{}/{path}", ssh.target("root", "web-1"), root.display());
    let rsync = || cluster.scene.program("rsync").args(["-a", "--stats", "-e", &shell]);
    let _done = rsync().arg(format!("{}/from/", root.display())).arg(remote("to")).output().succeeded();
    assert_same_tree(&root.join("from"), &root.join("to"));
    fs::write(root.join("from/small"), "changed\n").unwrap();
    fs::remove_file(root.join("from/empty")).unwrap();
    let again =
        rsync().args(["--delete", "--checksum"]).arg(format!("{}/from/", root.display())).arg(remote("to"));
    let again = again.output().succeeded();
    assert!(again.stdout_text().contains("Number of regular files transferred: 1"), "{again}");
    assert!(!root.join("to/empty").exists());
    fs::write(root.join("from/empty"), "").unwrap();
    fs::write(root.join("to/empty"), "").unwrap();
    let _done = rsync().arg(remote("to/")).arg(root.join("back")).output().succeeded();
    assert_same_tree(&root.join("from"), &root.join("back"));
}

fn h_files_are_made_by_the_account_that_was_entered(cluster: &Cluster) {
    use std::os::unix::fs::MetadataExt;
    let root = tree(cluster, "owner");
    let open = cluster.scene.path("owner/open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    // The scene's directory is private to whoever runs the tests.
    let scene = cluster.scene.path("");
    fs::set_permissions(&scene, fs::Permissions::from_mode(0o711)).unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o711)).unwrap();
    let ssh = cluster.ssh(&cluster.identity(), 0);
    let batch = format!("put {}/from/small {}/small\n", root.display(), open.display());
    let sftp = ssh.program("sftp").args(["-b", "-"]).arg(ssh.target("nobody", "web-1"));
    let _done = sftp.clone().input(batch).output().succeeded();
    assert_eq!(fs::metadata(open.join("small")).unwrap().uid(), 65534);
    // What only root reads stays unread, by a link that was planted as well.
    symlink("/etc/shadow", open.join("link")).unwrap();
    for path in ["/etc/shadow".to_owned(), format!("{}/link", open.display())] {
        let _denied = sftp.clone().input(format!("get {path} {}/stolen\n", root.display())).output().failed();
    }
    assert!(!root.join("stolen").exists());
    fs::set_permissions(&scene, fs::Permissions::from_mode(0o700)).unwrap();
}

fn what_cannot_be_read_is_told(cluster: &Cluster) {
    let ssh = cluster.ssh(&cluster.identity(), 0);
    let sftp = ssh.program("sftp").args(["-b", "-"]).arg(ssh.target("root", "web-1"));
    let output = sftp.input("get /no/such/file /dev/null\n").output().failed();
    assert!(
        output.stderr_text().to_lowercase().contains("no such file")
            || output.stderr_text().contains("not found"),
        "{output}"
    );
}

fn ansible_runs_over_the_printed_configuration(cluster: &Cluster) {
    let ssh = cluster.ssh(&cluster.identity(), 1);
    let root = tree(cluster, "ansible");
    let inventory = cluster.scene.write(
        "inventory",
        format!(
            "{} ansible_user=root ansible_python_interpreter=/usr/bin/python3 ansible_ssh_common_args='-F {}'\n",
            ssh.host("web-1"),
            ssh.config().display()
        ),
    );
    let playbook = cluster.scene.write(
        "playbook.yaml",
        format!(
            "- hosts: all\n  gather_facts: true\n  tasks:\n    - ansible.builtin.copy:\n        src: {root}/from/deep\n        \
             dest: {root}/to\n    - ansible.builtin.command: echo \"on {{{{ ansible_facts.distribution }}}}\"\n      \
             register: said\n    - ansible.builtin.assert:\n        that: said.stdout is match('on ')\n",
            root = root.display()
        ),
    );
    let ansible = |name: &str| {
        let program =
            cluster.scene.program(name).env("ANSIBLE_LOCAL_TEMP", cluster.scene.path("ansible-local"));
        program.env("ANSIBLE_REMOTE_TEMP", cluster.scene.path("ansible-remote")).arg("-i").arg(&inventory)
    };
    let ping = ansible("ansible").args(["all", "-m", "ping"]).output().succeeded();
    assert!(ping.stdout_text().contains("\"pong\""), "{ping}");
    let played = ansible("ansible-playbook").arg(&playbook).output().succeeded();
    assert!(played.stdout_text().contains("failed=0"), "{played}");
    assert!(fs::read(root.join("to/deep/er/large")).unwrap() == large());
}
