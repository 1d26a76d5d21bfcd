//! The route table: two sources, any order, several lives.
#![expect(clippy::unwrap_used, reason = "a test")]

use proptest::prelude::*;
use std::collections::BTreeSet;
use std::time::Duration;
use wayleave_peering::{
    Applied, Change, RouteError, RouteState, RouteTable, RouteUpdate, Source, TableConfig, TableEffect,
};
use wayleave_vocab::{HostId, Incarnation, Mono};

const T0: Mono = Mono::ZERO;

fn id(n: u8) -> HostId {
    HostId::from_random([n; 16])
}

fn set(ids: &[u8]) -> BTreeSet<HostId> {
    ids.iter().map(|n| id(*n)).collect()
}

fn update(life: u64, sequence: u64, change: Change) -> RouteUpdate {
    RouteUpdate { proxy: id(1), incarnation: Incarnation(life), sequence, change }
}

fn snapshot(life: u64, sequence: u64, agents: &[u8]) -> RouteUpdate {
    update(life, sequence, Change::Snapshot { agents: set(agents) })
}

fn delta(life: u64, base: u64, sequence: u64, added: &[u8], removed: &[u8]) -> RouteUpdate {
    update(life, sequence, Change::Delta { base, added: set(added), removed: set(removed) })
}

fn table(updates: &[RouteUpdate]) -> RouteTable {
    let mut table = RouteTable::new(TableConfig::default());
    for update in updates {
        table.handle_update(Source::Watch, update.clone(), T0).unwrap();
    }
    table
}

/// The agents 10 to 19 that have a route of a kind.
fn agents(table: &RouteTable, state: RouteState) -> Vec<u8> {
    (10..20).filter(|n| table.state(id(*n)) == state).collect()
}

fn check(updates: &[RouteUpdate], expected: &[u8]) {
    assert_eq!(agents(&table(updates), RouteState::Fresh), expected, "{updates:?}");
}

/// A dial tries a way again once it was heard of since: whoever looks for changes must see that there was a word.
#[test]
fn a_word_that_changes_no_route_is_a_change_all_the_same() {
    let mut table = table(&[snapshot(1, 5, &[10])]);
    let (revision, known) = (table.revision(), table.candidates(id(10)));
    table.handle_update(Source::Peer(id(1)), snapshot(1, 6, &[10]), T0).unwrap();
    assert_ne!(table.candidates(id(10)), known);
    assert!(table.revision() > revision);
    let revision = table.revision();
    table.handle_update(Source::Watch, snapshot(1, 5, &[10]), T0).unwrap();
    assert_eq!(table.revision(), revision);
}

#[test]
fn the_highest_statement_about_an_agent_holds_whatever_the_order() {
    check(&[snapshot(1, 5, &[10, 11]), delta(1, 5, 6, &[12], &[10])], &[11, 12]);
    check(&[delta(1, 5, 6, &[12], &[10]), snapshot(1, 5, &[10, 11])], &[11, 12]);
    check(&[snapshot(1, 5, &[10]), snapshot(1, 4, &[11])], &[10]);
    check(&[delta(1, 2, 3, &[], &[10]), delta(1, 1, 2, &[10], &[])], &[]);
    check(&[delta(1, 2, 3, &[10], &[]), delta(1, 1, 2, &[], &[10])], &[10]);
    check(&[delta(1, 0, 3, &[10], &[]), delta(1, 0, 3, &[], &[10])], &[10]);
}

#[test]
fn a_missing_statement_is_noticed_and_a_snapshot_asked_for() {
    let mut table = table(&[snapshot(1, 5, &[10]), delta(1, 7, 8, &[11], &[])]);
    assert_eq!(agents(&table, RouteState::Fresh), [10, 11], "what is known counts at once");
    let late = table.poll_timeout().unwrap();
    table.handle_timeout(late);
    assert_eq!(table.poll_effect(), Some(TableEffect::Resync { proxy: id(1), incarnation: Incarnation(1) }));
    table.handle_update(Source::Watch, delta(1, 5, 7, &[12], &[10]), late).unwrap();
    table.handle_timeout(late.after(Duration::from_secs(2)));
    assert_eq!(table.poll_effect(), None, "the missing one has come");
    assert_eq!(agents(&table, RouteState::Fresh), [11, 12]);
}

#[test]
fn a_newer_life_ends_the_former_one() {
    check(&[snapshot(1, 9, &[10]), snapshot(2, 1, &[11])], &[11]);
    check(&[snapshot(2, 1, &[11]), snapshot(1, 9, &[10])], &[11]);
}

#[test]
fn a_former_life_that_is_still_connected_is_suspect() {
    let mut table = table(&[snapshot(1, 9, &[10])]);
    table.handle_peer(id(1), Incarnation(1), true, T0).unwrap();
    table.handle_update(Source::Watch, snapshot(2, 1, &[11]), T0).unwrap();
    assert_eq!(agents(&table, RouteState::Suspect), [10]);
    table.handle_update(Source::Peer(id(1)), delta(1, 9, 10, &[12], &[]), T0).unwrap();
    assert_eq!(agents(&table, RouteState::Suspect), [10, 12]);
    table.handle_peer(id(1), Incarnation(1), false, T0).unwrap();
    assert_eq!((agents(&table, RouteState::Suspect), agents(&table, RouteState::Fresh)), (vec![], vec![11]));
}

#[test]
fn routes_become_suspect_and_expire_only_when_both_signs_are_gone() {
    let mut table = table(&[snapshot(1, 1, &[10])]);
    table.handle_lease(id(1), Incarnation(1), true, 5, T0).unwrap();
    table.handle_peer(id(1), Incarnation(1), true, T0).unwrap();
    assert_eq!(table.poll_timeout(), None);
    table.handle_lease(id(1), Incarnation(1), false, 6, T0).unwrap();
    assert_eq!(agents(&table, RouteState::Suspect), [10]);
    table.handle_timeout(T0.after(Duration::from_secs(1000)));
    assert_eq!(agents(&table, RouteState::Suspect), [10], "the peer connection stands");
    let broken = T0.after(Duration::from_secs(1000));
    table.handle_peer(id(1), Incarnation(1), false, broken).unwrap();
    table.handle_lease(id(1), Incarnation(1), true, 4, broken).unwrap();
    assert_eq!(
        table.poll_timeout(),
        Some(broken.after(Duration::from_secs(60))),
        "an old lease event is no news"
    );
    table.handle_timeout(broken.after(Duration::from_secs(59)));
    assert_eq!(agents(&table, RouteState::Suspect), [10]);
    table.handle_timeout(broken.after(Duration::from_secs(60)));
    assert_eq!((table.route_count(), table.poll_timeout()), (0, None));
    table.handle_update(Source::Watch, snapshot(1, 2, &[10]), broken).unwrap();
    assert_eq!(agents(&table, RouteState::Fresh), [10], "the same life may come back");
}

#[test]
fn a_withdrawn_life_is_never_believed_again() {
    let mut table = table(&[snapshot(1, 1, &[10])]);
    table.handle_withdrawn(Source::Watch, id(1), Incarnation(1)).unwrap();
    let late = table.handle_update(Source::Watch, snapshot(1, 2, &[10]), T0);
    assert_eq!((late, table.route_count()), (Ok(Applied::Stale), 0));
    table.handle_peer(id(1), Incarnation(1), true, T0).unwrap();
    table.handle_update(Source::Watch, snapshot(2, 1, &[11]), T0).unwrap();
    assert_eq!(agents(&table, RouteState::Fresh), [11]);
}

#[test]
fn not_here_is_a_statement_like_any_other() {
    let mut table = table(&[snapshot(1, 5, &[10, 11])]);
    table.handle_not_here(id(10), id(1), Incarnation(1), 4, T0).unwrap();
    assert_eq!(agents(&table, RouteState::Fresh), [10, 11], "it is older than the route");
    table.handle_not_here(id(10), id(1), Incarnation(1), 7, T0).unwrap();
    assert_eq!(agents(&table, RouteState::Fresh), [11]);
    table.handle_update(Source::Watch, delta(1, 5, 6, &[10], &[]), T0).unwrap();
    assert_eq!(agents(&table, RouteState::Fresh), [11]);
    table.handle_update(Source::Watch, delta(1, 6, 8, &[10], &[]), T0).unwrap();
    assert_eq!(agents(&table, RouteState::Fresh), [10, 11]);
}

#[test]
fn o_a_peer_speaks_for_itself_only() {
    let mut table = table(&[snapshot(1, 5, &[10])]);
    let lie = Source::Peer(id(2));
    let error = Err(RouteError::NotItsOwn { claimed: id(1), speaker: id(2) });
    assert_eq!(table.handle_update(lie, snapshot(9, 9, &[]), T0), error);
    assert!(table.handle_withdrawn(lie, id(1), Incarnation(9)).is_err());
    assert_eq!(agents(&table, RouteState::Fresh), [10]);
}

#[test]
fn f_the_table_is_bounded() {
    let mut table = RouteTable::new(TableConfig::default());
    let mut refused = 0;
    for n in 0..2000_u32 {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&n.to_be_bytes());
        let proxy = HostId::from_random(bytes);
        let update = RouteUpdate { proxy, ..snapshot(1, 1, &[10]) };
        refused += usize::from(table.handle_update(Source::Watch, update, T0).is_err());
    }
    assert_eq!((refused, table.route_count()), (1000, 1000));
}

proptest! {
    /// However statements are doubled, reordered and split over two ways, the last state wins.
    #[test]
    fn any_order_of_all_statements_gives_the_same_routes(
        history in proptest::collection::vec((10..16_u8, any::<bool>(), any::<bool>()), 1..30),
        order in proptest::collection::vec(any::<prop::sample::Index>(), 0..60),
    ) {
        let mut now_has = BTreeSet::new();
        let mut updates = Vec::new();
        for (n, (agent, up, whole)) in history.into_iter().enumerate() {
            if up { now_has.insert(agent); } else { now_has.remove(&agent); }
            let sequence = n as u64 + 1;
            let all: Vec<u8> = now_has.iter().copied().collect();
            updates.push(match (whole, up) {
                (true, _) => snapshot(1, sequence, &all),
                (false, true) => delta(1, sequence - 1, sequence, &[agent], &[]),
                (false, false) => delta(1, sequence - 1, sequence, &[], &[agent]),
            });
        }
        let mut shuffled: Vec<RouteUpdate> = order.iter().map(|index| index.get(&updates).clone()).collect();
        let rest: Vec<RouteUpdate> = updates.iter().filter(|update| !shuffled.contains(update)).cloned().collect();
        shuffled.extend(rest);
        let mut table = RouteTable::new(TableConfig::default());
        for (n, update) in shuffled.into_iter().enumerate() {
            let source = if n % 2 == 0 { Source::Watch } else { Source::Peer(id(1)) };
            table.handle_update(source, update, T0).unwrap();
        }
        prop_assert_eq!(agents(&table, RouteState::Fresh), now_has.into_iter().collect::<Vec<_>>());
    }
}
