//! What a cluster's members come to know of each other, whatever the network does.

use std::time::Duration;

use saturn_ring::{
    ClusterId, ConflictWinner, DropReason, DurablePosition, KeyRing, Liveness, MembershipEvent,
};
use uuid::Uuid;

use crate::cluster::{Cluster, Packet, SECRET, addr, id, member};

fn cluster_of(nodes: u16, seed: u64) -> Cluster {
    let mut cluster = Cluster::new(seed);
    for node in 0..nodes {
        cluster.start(node);
    }
    cluster.run_until(30, Cluster::agrees);
    cluster
}

#[test]
fn all_learn_each_other_within_seconds() {
    for (nodes, seed) in [(2, 1), (3, 2), (10, 3), (30, 4)] {
        let mut cluster = Cluster::new(seed);
        for node in 0..nodes {
            cluster.start(node);
        }
        // Thirty that start at the same moment may need a third round of announcements, of ten seconds each.
        let took = cluster.run_until(30, Cluster::agrees);
        println!("{nodes} nodes: {took:?}");
    }
}

#[test]
fn all_learn_each_other_over_a_lossy_network() {
    for seed in 0..10 {
        let mut cluster = Cluster::new(seed);
        cluster.loss_percent = 20;
        for node in 0..10 {
            cluster.start(node);
        }
        cluster.run_until(40, Cluster::agrees);
    }
}

#[test]
fn idle_members_say_little() {
    let mut cluster = cluster_of(10, 5);
    cluster.run_secs(60);
    let before = cluster.sent.len();
    cluster.run_secs(60);
    let per_node_and_second = (cluster.sent.len() - before) / 600;
    assert!(per_node_and_second <= 3, "{per_node_and_second} packets per second and node");
    assert!(cluster.agrees());
}

#[test]
fn a_crash_is_noticed_and_stays_listed() {
    let mut cluster = cluster_of(5, 6);
    cluster.crash(3);
    cluster.run_until(20, Cluster::agrees);
    cluster.run_until(10, |cluster| {
        cluster.nodes.values().all(|node| {
            node.member(&id(3))
                .is_some_and(|state| state.liveness == Liveness::Down && !node.is_alive(&id(3)))
        })
    });
    assert!(cluster.events.contains(&(addr(0), MembershipEvent::Down(member(3)))));
    let since = cluster.node(0).member(&id(3)).expect("listed").since;
    cluster.run_secs(60);
    assert_eq!(cluster.node(0).member(&id(3)).expect("listed").since, since);
}

#[test]
fn a_restart_replaces_the_earlier_life_at_once() {
    let mut cluster = cluster_of(5, 7);
    cluster.crash(3);
    cluster.start(3);
    let took = cluster.run_until(5, Cluster::agrees);
    assert!(took.as_secs() < 3, "{took:?}");
    // And after it was declared dead.
    cluster.crash(4);
    cluster.run_secs(20);
    assert!(!cluster.node(0).is_alive(&id(4)));
    cluster.start(4);
    cluster.run_until(5, Cluster::agrees);
}

#[test]
fn a_node_may_come_back_at_another_address() {
    let mut cluster = cluster_of(5, 8);
    cluster.crash(4);
    let mut moved = member(4);
    moved.gossip_addr = addr(44);
    let config = cluster.config(moved.clone());
    cluster.start_with(config);
    cluster.run_until(5, Cluster::agrees);
    assert_eq!(cluster.node(0).member(&id(4)).expect("listed").member, moved);
    assert_eq!(cluster.node(0).members().count(), 5);
}

#[test]
fn a_clock_that_went_back_is_overtaken() {
    let mut cluster = cluster_of(3, 9);
    cluster.crash(2);
    let mut config = cluster.config(member(2));
    config.boot = 5;
    cluster.start_with(config);
    cluster.run_until(5, Cluster::agrees);
}

#[test]
fn a_partition_heals() {
    for seed in 0..5 {
        let mut cluster = cluster_of(6, 20 + seed);
        cluster.far_side = [addr(0), addr(4), addr(5)].into();
        cluster.run_secs(40);
        assert!(!cluster.node(1).is_alive(&id(4)));
        assert!(cluster.node(4).is_alive(&id(0)));
        cluster.far_side.clear();
        cluster.run_until(40, Cluster::agrees);
    }
}

#[test]
fn a_node_cut_off_alone_comes_back() {
    let mut cluster = cluster_of(4, 30);
    cluster.far_side = [addr(3)].into();
    cluster.run_secs(60);
    assert_eq!(cluster.node(3).members().filter(|s| s.liveness == Liveness::Alive).count(), 1);
    cluster.far_side.clear();
    cluster.run_until(15, Cluster::agrees);
}

#[test]
fn a_late_joiner_learns_all() {
    let mut cluster = cluster_of(12, 31);
    cluster.run_secs(300);
    cluster.start(12);
    cluster.run_until(10, Cluster::agrees);
}

#[test]
fn leaving_is_noticed_without_waiting() {
    let mut cluster = cluster_of(4, 32);
    let mut actions = Vec::new();
    let now = cluster.now;
    cluster.node(3).leave(now, &mut actions);
    cluster.perform(addr(3), actions);
    cluster.crash(3);
    let took = cluster.run_until(5, Cluster::agrees);
    assert!(took.as_secs() < 2, "{took:?}");
}

#[test]
fn placement_versions_get_around() {
    let mut cluster = cluster_of(5, 33);
    cluster.node(2).set_placement_version(7);
    cluster.run_until(30, |cluster| {
        let knows = |state: Option<u64>| state == Some(7);
        cluster.nodes.values().all(|node| knows(node.member(&id(2)).and_then(|s| s.placement_version)))
    });
    assert_eq!(cluster.node(2).member(&id(1)).expect("listed").placement_version, Some(0));
}

#[test]
fn durable_positions_get_around_and_grow_only() {
    let mut cluster = cluster_of(3, 35);
    let at = |offset| DurablePosition { segment: 4, offset };
    let heard = |cluster: &Cluster, offset| {
        let is_it = |event: &MembershipEvent| {
            matches!(event, MembershipEvent::DurablePosition { member, position }
                if member.id == id(2) && *position == at(offset))
        };
        let by =
            |node| cluster.events.iter().filter(|(who, event)| *who == addr(node) && is_it(event)).count();
        (by(0), by(1))
    };
    cluster.node(2).set_durable_position(at(9));
    cluster.run_until(30, |cluster| heard(cluster, 9) == (1, 1));
    // Whoever went back has lost something, which is not what others are to remember.
    cluster.node(2).set_durable_position(at(5));
    cluster.run_secs(30);
    assert_eq!((heard(&cluster, 5), heard(&cluster, 9)), ((0, 0), (1, 1)));
}

#[test]
fn a_formed_cluster_takes_in_newcomers_and_keeps_strangers_out() {
    let mut cluster = cluster_of(3, 34);
    let (ours, theirs) = (ClusterId(Uuid::from_u128(1)), ClusterId(Uuid::from_u128(2)));
    for node in 0..3 {
        cluster.node(node).set_cluster_id(ours);
    }
    cluster.start(3);
    cluster.run_until(10, Cluster::agrees);
    let mut stranger = cluster.config(member(9));
    stranger.cluster = Some(theirs);
    cluster.start_with(stranger);
    cluster.run_secs(20);
    assert_eq!(cluster.node(0).member(&id(9)), None);
    assert!(cluster.node(0).dropped().get(DropReason::ForeignCluster) > 0);
    let event = MembershipEvent::ForeignCluster { from: addr(9), cluster: theirs };
    assert_eq!(cluster.events.iter().filter(|e| **e == (addr(0), event.clone())).count(), 1, "once a minute");
    assert_eq!(cluster.node(9).members().count(), 1);
}

#[test]
fn a_wrong_key_keeps_out() {
    let mut cluster = cluster_of(3, 35);
    let mut config = cluster.config(member(9));
    config.keys = KeyRing::new(&[b"not the secret of this cluster"]).expect("valid");
    cluster.start_with(config);
    cluster.run_secs(10);
    assert_eq!(cluster.node(0).member(&id(9)), None);
    assert!(cluster.node(0).dropped().get(DropReason::UnknownKey) > 0);
}

#[test]
fn repeated_and_damaged_packets_change_nothing() {
    let mut cluster = cluster_of(4, 36);
    cluster.crash(3);
    cluster.run_until(20, Cluster::agrees);
    let members: Vec<_> = cluster.node(0).members().cloned().collect();
    let recorded: Vec<Packet> = cluster.sent.iter().filter(|packet| packet.to == addr(0)).cloned().collect();
    let (sent, before) = (cluster.sent.len(), cluster.node(0).dropped());
    for packet in &recorded {
        cluster.deliver(packet);
        let mut damaged = packet.clone();
        let at = damaged.bytes.len() / 2;
        damaged.bytes[at] ^= 1;
        cluster.deliver(&damaged);
    }
    let after = cluster.node(0).dropped();
    let count = recorded.len() as u64;
    assert_eq!(after.get(DropReason::Replayed) - before.get(DropReason::Replayed), count);
    assert_eq!(after.get(DropReason::Tampered) - before.get(DropReason::Tampered), count);
    assert_eq!(cluster.node(0).members().cloned().collect::<Vec<_>>(), members);
    assert_eq!(cluster.sent.len(), sent, "nobody is answered");
}

#[test]
fn packets_recorded_before_a_restart_do_not_bring_back_the_dead_for_long() {
    let mut cluster = cluster_of(4, 37);
    cluster.crash(3);
    cluster.run_until(20, Cluster::agrees);
    let recorded: Vec<Packet> = cluster.sent.iter().filter(|packet| packet.to == addr(0)).cloned().collect();
    cluster.crash(0);
    cluster.start(0);
    cluster.run_until(10, Cluster::agrees);
    for packet in &recorded {
        cluster.deliver(packet);
    }
    cluster.run_until(30, Cluster::agrees);
}

#[test]
fn of_two_young_nodes_of_one_name_the_later_one_stays() {
    let mut cluster = cluster_of(4, 38);
    cluster.crash(3);
    cluster.start(3);
    cluster.run_until(5, Cluster::agrees);
    let mut twin = member(3);
    twin.gossip_addr = addr(33);
    let config = cluster.config(twin.clone());
    cluster.start_with(config);
    let sent = cluster.sent.len();
    cluster.run_secs(60);
    for node in 0..3 {
        assert_eq!(cluster.node(node).member(&id(3)).expect("listed").member, twin);
        assert!(cluster.node(node).is_alive(&id(3)));
    }
    let lost = MembershipEvent::NameConflict { other: twin, winner: ConflictWinner::Other };
    assert!(cluster.events.contains(&(addr(3), lost)), "{:?}", cluster.events);
    assert!(cluster.sent.len() - sent < 5 * 60 * 10, "no storm: {} packets", cluster.sent.len() - sent);
}

/// A copy of a data directory, a new one under an old name, or one that was away too long: whoever comes while the
/// node lives changes nothing.
#[test]
fn a_node_that_lives_keeps_its_name_against_newcomers() {
    for (case, generation) in [(0, member(3).generation), (1, member(4).generation)] {
        let mut cluster = cluster_of(4, 39 + case);
        cluster.run_secs(20);
        let mut twin = member(3);
        (twin.gossip_addr, twin.generation) = (addr(33), generation);
        let config = cluster.config(twin.clone());
        cluster.start_with(config);
        let sent = cluster.sent.len();
        cluster.run_secs(10);
        let other = member(3);
        let lost = MembershipEvent::NameConflict { other, winner: ConflictWinner::Other };
        assert!(cluster.events.contains(&(addr(33), lost)), "{:?}", cluster.events);
        // It gives up, as it is told.
        cluster.nodes.remove(&addr(33));
        cluster.run_secs(20);
        for node in 0..4 {
            assert_eq!(cluster.node(node).member(&id(3)).expect("listed").member, member(3));
            assert!(cluster.node(node).is_alive(&id(3)));
        }
        let won = MembershipEvent::NameConflict { other: twin, winner: ConflictWinner::Myself };
        let told = cluster.events.iter().filter(|event| **event == (addr(3), won.clone())).count();
        assert_eq!(told, 1, "{:?}", cluster.events);
        assert!(cluster.node(3).dropped().get(DropReason::NameConflict) > 0);
        assert!(cluster.sent.len() - sent < 5 * 30 * 10, "no storm: {} packets", cluster.sent.len() - sent);
    }
}

#[test]
fn two_that_both_defend_a_name_come_to_an_end() {
    let mut cluster = cluster_of(4, 41);
    cluster.far_side.insert(addr(33));
    let mut twin = member(3);
    twin.gossip_addr = addr(33);
    let config = cluster.config(twin);
    cluster.start_with(config);
    cluster.run_secs(30);
    cluster.far_side.clear();
    let sent = cluster.sent.len();
    cluster.run_secs(60);
    let keeper = cluster.node(0).member(&id(3)).expect("listed").member.gossip_addr;
    cluster.run_secs(60);
    for node in 0..3 {
        assert_eq!(cluster.node(node).member(&id(3)).expect("listed").member.gossip_addr, keeper);
        assert!(cluster.node(node).is_alive(&id(3)));
    }
    assert!(cluster.sent.len() - sent < 5 * 120 * 10, "no storm: {} packets", cluster.sent.len() - sent);
}

#[test]
fn the_first_packet_of_a_kind_that_is_dropped_is_told_of() {
    let mut cluster = cluster_of(3, 42);
    let packet = cluster.sent.iter().find(|packet| packet.to == addr(0)).cloned().expect("they talk");
    let mut damaged = packet.clone();
    *damaged.bytes.last_mut().expect("not empty") ^= 1;
    for packet in [&packet, &damaged, &packet, &damaged] {
        cluster.deliver(packet);
    }
    for reason in [DropReason::Replayed, DropReason::Tampered] {
        let told = |(at, event): &&(_, MembershipEvent)| {
            *at == addr(0)
                && matches!(event, MembershipEvent::PacketDropped { reason: dropped, .. } if *dropped == reason)
        };
        assert_eq!(cluster.events.iter().filter(told).count(), 1, "{reason:?}");
        assert_eq!(cluster.node(0).dropped().get(reason), 2);
    }
}

#[test]
fn a_secret_is_rotated_node_by_node_and_nobody_is_lost() {
    let new: &[u8] = b"the next secret of the simulated cluster";
    let mut cluster = cluster_of(4, 43);
    let before = cluster.events.len();
    for secrets in [&[SECRET, new][..], &[new, SECRET], &[new]] {
        for node in 0..4 {
            cluster.node(node).set_keys(KeyRing::new(secrets).expect("valid secrets"));
            cluster.run_secs(3);
        }
    }
    cluster.run_secs(10);
    assert!(cluster.agrees());
    let down =
        |(_, event): &&(_, MembershipEvent)| !matches!(event, MembershipEvent::PlacementVersion { .. });
    assert_eq!(cluster.events[before..].iter().find(down), None);
    for node in 0..4 {
        assert_eq!(cluster.node(node).dropped().get(DropReason::UnknownKey), 0);
    }
}

/// Crashes, restarts, partitions and losses as a seed has it; then calm.
#[test]
fn any_history_ends_in_agreement() {
    for seed in 0..40 {
        let mut cluster = Cluster::new(1000 + seed);
        for node in 0..7 {
            cluster.start(node);
        }
        for _ in 0..30 {
            let node = u16::try_from(cluster.random() % 7).expect("small");
            match cluster.random() % 6 {
                0 => cluster.crash(node),
                1 | 2 => cluster.start(node),
                3 => cluster.loss_percent = cluster.random() % 90,
                4 => drop(cluster.far_side.insert(addr(node))),
                _ => cluster.far_side.clear(),
            }
            let millis = cluster.random() % 8_000;
            cluster.run(Duration::from_millis(millis));
        }
        cluster.loss_percent = 0;
        cluster.far_side.clear();
        for node in 0..7 {
            if !cluster.nodes.contains_key(&addr(node)) {
                cluster.start(node);
            }
        }
        let took = cluster.run_until(90, Cluster::agrees);
        println!("seed {seed}: {took:?}");
        cluster.run_secs(30);
        assert!(cluster.agrees(), "seed {seed}: {:#?}", cluster.views());
    }
}

#[test]
fn a_lossy_network_buries_nobody() {
    let mut cluster = cluster_of(10, 40);
    cluster.loss_percent = 5;
    let before = cluster.events.len();
    cluster.run_secs(300);
    let down = |(_, event): &&(_, MembershipEvent)| matches!(event, MembershipEvent::Down(_));
    assert_eq!(cluster.events[before..].iter().filter(down).count(), 0);
}
