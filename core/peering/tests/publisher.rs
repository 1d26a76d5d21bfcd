//! The publisher: what it tells, and how it comes back from a lost lease.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeSet;
use std::time::Duration;
use wayleave_peering::{
    Change, LinkId, Phase, Publisher, PublisherConfig, PublisherEffect, RouteState, RouteTable, RouteWrite,
    Source, TableConfig,
};
use wayleave_vocab::{HostId, Incarnation, Mono};

fn id(n: u16) -> HostId {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&n.to_be_bytes());
    HostId::from_random(bytes)
}

struct Rig {
    publisher: Publisher,
    now: Mono,
}

impl Rig {
    fn leased() -> Self {
        let publisher = Publisher::new(PublisherConfig::default(), id(1), Incarnation(3), Mono::ZERO);
        let mut rig = Self { publisher, now: Mono::ZERO };
        assert_eq!(rig.effects(), [PublisherEffect::CreateLease]);
        rig.publisher.handle_lease_granted(rig.now);
        let write = rig.only_write();
        assert_eq!(write.phase, Phase::Rewrite { is_first: true, is_last: true });
        rig.publisher.handle_written(write.id, rig.now);
        rig.wake();
        rig
    }

    fn effects(&mut self) -> Vec<PublisherEffect> {
        std::iter::from_fn(|| self.publisher.poll_effect()).collect()
    }

    fn wake(&mut self) {
        self.now = self.publisher.poll_timeout().unwrap();
        self.publisher.handle_timeout(self.now);
    }

    fn only_write(&mut self) -> RouteWrite {
        let effects = self.effects();
        match effects.as_slice() {
            [PublisherEffect::Write(write)] => write.clone(),
            other => panic!("{other:?}"),
        }
    }
}

fn names(change: &Change) -> (usize, usize) {
    match change {
        Change::Delta { added, removed, .. } => (added.len(), removed.len()),
        Change::Snapshot { agents } => (agents.len(), 0),
    }
}

#[test]
fn changes_travel_together_and_nothing_is_told_twice() {
    let mut rig = Rig::leased();
    for n in 10..20 {
        rig.publisher.handle_tunnel_up(id(n), rig.now);
    }
    rig.publisher.handle_tunnel_down(id(10), rig.now);
    assert_eq!(rig.effects(), []);
    rig.wake();
    let write = rig.only_write();
    assert_eq!(names(&write.update.change), (9, 1));
    rig.publisher.handle_tunnel_up(id(10), rig.now);
    rig.wake();
    assert_eq!(rig.effects(), [], "one write at a time");
    rig.publisher.handle_written(write.id, rig.now);
    let write = rig.only_write();
    assert_eq!(names(&write.update.change), (1, 0));
    rig.publisher.handle_written(write.id, rig.now);
    assert_eq!((rig.effects(), rig.publisher.poll_timeout()), (vec![], None));
}

#[test]
fn a_second_tunnel_of_an_agent_is_no_change() {
    let mut rig = Rig::leased();
    rig.publisher.handle_tunnel_up(id(10), rig.now);
    rig.wake();
    let write = rig.only_write();
    rig.publisher.handle_written(write.id, rig.now);
    rig.publisher.handle_tunnel_up(id(10), rig.now);
    rig.publisher.handle_tunnel_down(id(10), rig.now);
    assert_eq!(rig.publisher.poll_timeout(), None);
    assert!(rig.publisher.holds(id(10)));
}

#[test]
fn a_failed_write_is_made_again_with_what_changed_meanwhile() {
    let mut rig = Rig::leased();
    rig.publisher.handle_tunnel_up(id(10), rig.now);
    rig.wake();
    let write = rig.only_write();
    rig.publisher.handle_tunnel_up(id(11), rig.now);
    rig.publisher.handle_write_failed(write.id, rig.now);
    rig.wake();
    rig.wake();
    let again = rig.only_write();
    assert_eq!(names(&again.update.change), (2, 0));
    assert!(again.update.sequence > write.update.sequence);
}

#[test]
fn g_an_unanswered_question_is_asked_again() {
    let mut rig = Rig::leased();
    rig.publisher.handle_tunnel_up(id(10), rig.now);
    rig.wake();
    let write = rig.only_write();
    rig.wake();
    rig.wake();
    assert!(rig.only_write().id > write.id);
    rig.publisher.handle_lease_lost(rig.now);
    rig.wake();
    assert_eq!(rig.effects(), [PublisherEffect::CreateLease]);
    rig.wake();
    rig.wake();
    assert_eq!(rig.effects(), [PublisherEffect::CreateLease]);
}

#[test]
fn everything_is_written_anew_after_a_lost_lease_and_not_all_at_once() {
    let mut rig = Rig::leased();
    for n in 10..1310 {
        rig.publisher.handle_tunnel_up(id(n), rig.now);
    }
    rig.wake();
    rig.effects();
    rig.publisher.handle_lease_lost(rig.now);
    rig.wake();
    rig.publisher.handle_lease_granted(rig.now);
    rig.effects();
    let write = |rig: &mut Rig| match rig.effects().as_slice() {
        [PublisherEffect::Write(write)] => write.clone(),
        other => panic!("{other:?}"),
    };
    rig.publisher.handle_lease_lost(rig.now);
    rig.wake();
    rig.effects();
    rig.publisher.handle_lease_granted(rig.now);
    let mut seen = BTreeSet::new();
    let begun = rig.now;
    loop {
        let part = write(&mut rig);
        let Change::Delta { added, .. } = &part.update.change else { panic!("a write is a delta") };
        assert!(added.len() <= 500);
        seen.extend(added.iter().copied());
        rig.publisher.handle_written(part.id, rig.now);
        if let Phase::Rewrite { is_last: true, .. } = part.phase {
            break;
        }
        assert_eq!(rig.effects(), [], "the next part waits");
        rig.wake();
    }
    assert_eq!(seen.len(), 1300);
    assert!(rig.now.since(begun) >= 2 * Duration::from_millis(20));
}

#[test]
fn a_peer_gets_a_snapshot_and_then_every_change() {
    let mut rig = Rig::leased();
    let mut table = RouteTable::new(TableConfig::default());
    rig.publisher.handle_tunnel_up(id(10), rig.now);
    rig.publisher.handle_peer_connected(LinkId(2), rig.now);
    rig.publisher.handle_tunnel_up(id(11), rig.now);
    rig.wake();
    rig.publisher.handle_tunnel_down(id(10), rig.now);
    let (incarnation, sequence) = rig.publisher.not_here();
    rig.wake();
    for effect in rig.effects() {
        if let PublisherEffect::Push { link, update } = effect {
            assert_eq!(link, LinkId(2));
            table.handle_update(Source::Peer(id(1)), update, rig.now).unwrap();
        }
    }
    table.handle_not_here(id(10), id(1), incarnation, sequence, rig.now).unwrap();
    assert_eq!((table.state(id(10)), table.state(id(11))), (RouteState::None, RouteState::Fresh));
    table.handle_timeout(rig.now.after(Duration::from_secs(1)));
    assert_eq!(table.poll_effect(), None, "nothing is missing");
    rig.publisher.withdraw();
    let last = rig.effects();
    assert_eq!(last.last(), Some(&PublisherEffect::Withdraw { proxy: id(1), incarnation: Incarnation(3) }));
    assert_eq!(rig.publisher.poll_timeout(), None);
}
