//! Becoming a user for good, in a process with one thread.

use crate::account::Account;
use crate::order::ChildFailure;
use nix::unistd::{
    Gid, Uid, getgroups, getresgid, getresuid, setgid, setgroups, setresgid, setresuid, setuid,
};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::collections::BTreeSet;

/// Takes the account's groups and ids for real, effective and saved, gives up all capabilities, and then
/// proves that root cannot come back. On an error nothing may be run: some steps may have been taken.
pub(crate) fn become_user(account: &Account) -> Result<(), ChildFailure> {
    let (uid, gid) = (Uid::from_raw(account.uid()), Gid::from_raw(account.gid()));
    if Uid::effective().is_root() {
        let groups: Vec<Gid> = account.groups().iter().copied().map(Gid::from_raw).collect();
        setgroups(&groups).map_err(failed("groups"))?;
        setresgid(gid, gid, gid).map_err(failed("group"))?;
        setresuid(uid, uid, uid).map_err(failed("user"))?;
        verify_groups(account)?;
    }
    drop_capabilities(account)?;
    verify_ids(uid, gid)
}

/// An agent that is not root may hold ambient capabilities; users must not inherit them.
fn drop_capabilities(account: &Account) -> Result<(), ChildFailure> {
    match rustix::thread::clear_ambient_capability_set() {
        // A kernel before 4.3 has none.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(failed("ambient capabilities")(errno)),
    }
    if account.is_root() {
        return Ok(());
    }
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets { effective: none, permitted: none, inheritable: none },
    )
    .map_err(failed("capabilities"))
}

fn verify_groups(account: &Account) -> Result<(), ChildFailure> {
    let wanted: BTreeSet<u32> = account.groups().iter().copied().collect();
    let held: BTreeSet<u32> =
        getgroups().map_err(failed("verify groups"))?.into_iter().map(Gid::as_raw).collect();
    if held == wanted { Ok(()) } else { Err(refused("verify groups", "other groups are held")) }
}

fn verify_ids(uid: Uid, gid: Gid) -> Result<(), ChildFailure> {
    let users = getresuid().map_err(failed("verify user"))?;
    if [users.real, users.effective, users.saved] != [uid; 3] {
        return Err(refused("verify user", "this process runs as another user"));
    }
    let groups = getresgid().map_err(failed("verify group"))?;
    if [groups.real, groups.effective, groups.saved] != [gid; 3] {
        return Err(refused("verify group", "this process runs with another group"));
    }
    let root = Uid::from_raw(0);
    if !uid.is_root() && (setuid(root).is_ok() || setresuid(root, root, root).is_ok()) {
        return Err(refused("verify user", "root can be regained"));
    }
    if !uid.is_root() && gid.as_raw() != 0 && setgid(Gid::from_raw(0)).is_ok() {
        return Err(refused("verify group", "the group of root can be regained"));
    }
    Ok(())
}

fn failed<E: ToString>(step: &'static str) -> impl Fn(E) -> ChildFailure {
    move |errno| refused(step, &errno.to_string())
}

fn refused(step: &str, reason: &str) -> ChildFailure {
    ChildFailure::Privileges { step: step.to_owned(), reason: reason.to_owned() }
}
