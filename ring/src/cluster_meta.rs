//! What the whole cluster agrees on: who its members are, and what the operator wants of them.
//!
//! Applied command by command from the log of group 0. Pure and deterministic.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{Generation, NodeId, Placement, PlacementMember, Standing};

/// Changes of the member list that are remembered.
const HISTORY_MAX: usize = 256;

/// The cluster's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMeta {
    /// Grows with every change of the member list; 0 before the first command.
    pub version: u64,
    /// Slots of every shard.
    pub replication_factor: u8,
    /// Who belongs to the cluster, by id.
    pub members: Vec<PlacementMember>,
    /// Whether shards stay where they are although the member list asks for something else.
    pub is_paused: bool,
    /// What happened, the latest last.
    pub history: VecDeque<ClusterChange>,
}

/// Something that happened to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterChange {
    /// When (Unix milliseconds), by the clock of the node that asked for it.
    pub at_ms: i64,
    /// The member list's version since then.
    pub version: u64,
    /// What, in words.
    pub what: String,
}

/// A command and when it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterCommand {
    /// When (Unix milliseconds), by the clock of the node that asks.
    pub at_ms: i64,
    /// What is asked.
    pub change: MemberChange,
}

/// What can happen to the cluster's metadata.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemberChange {
    /// The first member list. Says nothing if there is one.
    Found {
        /// Slots of every shard.
        replication_factor: u8,
        /// The members.
        members: Vec<PlacementMember>,
    },
    /// A node joins, or a member says that its zone or weight has changed.
    Register(PlacementMember),
    /// A node shall hand over what it holds, or hold its share again.
    Stand(NodeId, Standing),
    /// One node takes the place of another, which is drained.
    Replace {
        /// Who goes.
        old: NodeId,
        /// Who comes.
        new: NodeId,
    },
    /// A node does not belong to the cluster any more.
    Forget(NodeId),
    /// Shards stay where they are, or move again.
    Pause(bool),
    /// A member's disk has lost what it had acknowledged, its part in the Raft groups included: from now on it is another
    /// one, which takes what is missing from the others.
    Renew {
        /// Who.
        id: NodeId,
        /// What its data directory was.
        former: Generation,
        /// What it is now.
        generation: Generation,
    },
}

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum MemberError {
    /// Check the name.
    #[error("there is no member {0}")]
    NoSuchMember(NodeId),
    /// Its data directory is not the one that the cluster knows.
    #[error(
        "the cluster knows {0} with a data directory of another generation: bring that back; if it is lost, let this \
         one take its place (saturnctl ring replace {0} {0}), and start {0} again"
    )]
    OtherGeneration(NodeId),
    /// The shards would have fewer nodes than replicas.
    #[error("{left} nodes would be left to hold {replication_factor} replicas of each shard")]
    TooFewNodes {
        /// How many would be left.
        left: usize,
        /// How many are needed.
        replication_factor: u8,
    },
    /// Drain it first, or replace it.
    #[error("{0} is to hold shards: drain or replace it first")]
    NotDrained(NodeId),
    /// Two different nodes are needed.
    #[error("{0} cannot replace itself")]
    Itself(NodeId),
}

impl ClusterMeta {
    /// Applies a command.
    ///
    /// # Errors
    /// If it makes no sense; then nothing changes. Every replica says the same.
    pub fn apply(&mut self, command: ClusterCommand) -> Result<(), MemberError> {
        let ClusterCommand { at_ms, change } = command;
        let Some(what) = self.change(change)? else { return Ok(()) };
        self.version += 1;
        self.members.sort();
        self.history.push_back(ClusterChange { at_ms, version: self.version, what });
        while self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
        Ok(())
    }

    /// A member by its id.
    pub fn member(&self, id: &NodeId) -> Option<&PlacementMember> {
        self.members.iter().find(|member| member.id == *id)
    }

    /// What was changed, if anything was.
    fn change(&mut self, change: MemberChange) -> Result<Option<String>, MemberError> {
        match change {
            MemberChange::Found { replication_factor, members } => {
                if self.version > 0 {
                    return Ok(None);
                }
                let what = format!("founded with {} nodes", members.len());
                (self.replication_factor, self.members) = (replication_factor, members);
                Ok(Some(what))
            }
            MemberChange::Register(member) => self.register(member),
            MemberChange::Stand(id, standing) => {
                let mut members = self.members.clone();
                let member = find(&mut members, &id)?;
                if member.standing == standing {
                    return Ok(None);
                }
                member.standing = standing;
                self.adopt(members)?;
                let verb = if standing == Standing::Draining { "drained" } else { "undrained" };
                Ok(Some(format!("{id} is {verb}")))
            }
            MemberChange::Replace { old, new } => {
                if old == new {
                    return Err(MemberError::Itself(old));
                }
                let mut members = self.members.clone();
                let leaving = find(&mut members, &old)?;
                leaving.standing = Standing::Draining;
                let place = leaving.stands_for.clone().unwrap_or_else(|| old.clone());
                let zone = leaving.zone.clone();
                let coming = find(&mut members, &new)?;
                (coming.standing, coming.stands_for) = (Standing::Active, Some(place));
                let same_zone = coming.zone == zone;
                self.adopt(members)?;
                let note = if same_zone { "" } else { ", from another zone" };
                Ok(Some(format!("{old} is replaced by {new}{note}")))
            }
            MemberChange::Forget(id) => {
                let mut members = self.members.clone();
                if find(&mut members, &id)?.standing == Standing::Active {
                    return Err(MemberError::NotDrained(id));
                }
                members.retain(|member| member.id != id);
                self.members = members;
                Ok(Some(format!("{id} is forgotten")))
            }
            MemberChange::Pause(is_paused) => {
                if self.is_paused == is_paused {
                    return Ok(None);
                }
                self.is_paused = is_paused;
                Ok(Some(if is_paused { "rebalancing is paused" } else { "rebalancing goes on" }.into()))
            }
            MemberChange::Renew { id, former, generation } => {
                let member = find(&mut self.members, &id)?;
                if member.generation == generation {
                    return Ok(None);
                }
                if member.generation != former {
                    return Err(MemberError::OtherGeneration(id));
                }
                member.generation = generation;
                Ok(Some(format!("{id} had lost what it had acknowledged, and takes it from the others")))
            }
        }
    }

    fn register(&mut self, new: PlacementMember) -> Result<Option<String>, MemberError> {
        let Some(known) = self.members.iter_mut().find(|member| member.id == new.id) else {
            let what = format!("{} of zone {} joined", new.id, new.zone);
            self.members.push(new);
            return Ok(Some(what));
        };
        if known.generation != new.generation {
            return Err(MemberError::OtherGeneration(new.id));
        }
        if (&known.zone, known.weight) == (&new.zone, new.weight) {
            return Ok(None);
        }
        let what = format!("{} is of zone {} and weight {}", new.id, new.zone, new.weight);
        (known.zone, known.weight) = (new.zone, new.weight);
        Ok(Some(what))
    }

    /// Takes over a changed list if enough nodes are left.
    fn adopt(&mut self, members: Vec<PlacementMember>) -> Result<(), MemberError> {
        let left = members.iter().filter(|member| member.holds_shards()).count();
        if left < usize::from(self.replication_factor) {
            return Err(MemberError::TooFewNodes { left, replication_factor: self.replication_factor });
        }
        self.members = members;
        Ok(())
    }
}

fn find<'a>(members: &'a mut [PlacementMember], id: &NodeId) -> Result<&'a mut PlacementMember, MemberError> {
    let found = members.iter_mut().find(|member| member.id == *id);
    found.ok_or_else(|| MemberError::NoSuchMember(id.clone()))
}

impl Placement {
    /// The nodes that keep the cluster's metadata: up to five, from as many zones as there are, those that drain
    /// only if there are no others. A function of the member list.
    pub fn council(members: &[PlacementMember]) -> Vec<NodeId> {
        let mut sorted: Vec<&PlacementMember> = members.iter().collect();
        sorted.sort_by_key(|member| (member.standing, &member.id));
        let mut council: Vec<&PlacementMember> = Vec::new();
        let seats = match sorted.iter().filter(|member| member.standing == Standing::Active).count() {
            0 => sorted.len().min(COUNCIL_MAX),
            active => active.min(COUNCIL_MAX),
        };
        // An even number tolerates no more failures than the odd one below.
        let seats = if seats % 2 == 0 { seats.saturating_sub(1).max(1) } else { seats };
        while council.len() < seats {
            let seated = |zone| council.iter().filter(|member| member.zone == zone).count();
            let free = sorted.iter().filter(|member| !council.contains(member));
            let next = free.min_by_key(|member| (member.standing, seated(member.zone.clone()), &member.id));
            council.push(next.expect("there are at least as many members as seats"));
        }
        let mut ids: Vec<NodeId> = council.into_iter().map(|member| member.id.clone()).collect();
        ids.sort();
        ids
    }
}

/// Most nodes that keep the cluster's metadata: two of them may fail.
const COUNCIL_MAX: usize = 5;

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::testing::{member, node};

    fn cluster(members: &[(&str, &str)]) -> ClusterMeta {
        let mut meta = ClusterMeta::default();
        let members = members.iter().map(|(name, zone)| member(name, zone)).collect();
        meta.apply(at(MemberChange::Found { replication_factor: 3, members })).expect("founds");
        meta
    }

    fn at(change: MemberChange) -> ClusterCommand {
        ClusterCommand { at_ms: 1, change }
    }

    #[test]
    fn a_member_whose_disk_lost_something_is_another_one() {
        let mut meta = cluster(&[("a", "x"), ("b", "y"), ("c", "z")]);
        let generation = |number| Generation(Uuid::from_u128(number));
        let renew = |former, new| MemberChange::Renew {
            id: node("b"),
            former: generation(former),
            generation: generation(new),
        };
        meta.apply(at(renew(0, 7))).expect("it is what the cluster knows");
        assert_eq!((meta.version, meta.member(&node("b")).expect("there").generation), (2, generation(7)));
        meta.apply(at(renew(0, 7))).expect("says nothing the second time");
        assert_eq!(meta.version, 2);
        let refused = meta.apply(at(renew(0, 8)));
        assert_eq!(refused, Err(MemberError::OtherGeneration(node("b"))));
    }

    #[test]
    fn members_come_and_go() {
        let mut meta = cluster(&[("a", "x"), ("b", "y"), ("c", "z")]);
        let mut apply = |change| meta.apply(at(change));
        let too_few = MemberError::TooFewNodes { left: 2, replication_factor: 3 };
        assert_eq!(apply(MemberChange::Stand(node("a"), Standing::Draining)), Err(too_few));
        apply(MemberChange::Register(member("d", "x"))).expect("joins");
        apply(MemberChange::Register(member("d", "x"))).expect("says nothing new");
        let stranger = PlacementMember { generation: Generation(Uuid::max()), ..member("d", "x") };
        assert_eq!(apply(MemberChange::Register(stranger)), Err(MemberError::OtherGeneration(node("d"))));
        assert_eq!(apply(MemberChange::Forget(node("a"))), Err(MemberError::NotDrained(node("a"))));
        apply(MemberChange::Replace { old: node("a"), new: node("d") }).expect("replaces");
        assert_eq!(
            apply(MemberChange::Stand(node("e"), Standing::Active)),
            Err(MemberError::NoSuchMember(node("e")))
        );
        apply(MemberChange::Forget(node("a"))).expect("forgets");
        let moved = PlacementMember { weight: 50, ..member("b", "w") };
        apply(MemberChange::Register(moved)).expect("changes its zone");
        assert_eq!((meta.version, meta.members.len()), (5, 3));
        assert_eq!(meta.member(&node("d")).expect("there").stands_for, Some(node("a")));
        let words: Vec<&str> = meta.history.iter().map(|change| change.what.as_str()).collect();
        assert_eq!(
            words,
            [
                "founded with 3 nodes",
                "d of zone x joined",
                "a is replaced by d",
                "a is forgotten",
                "b is of zone w and weight 50"
            ]
        );
    }

    #[test]
    fn a_council_is_odd_and_spread() {
        let names = |members: &[(&str, &str)]| {
            let members: Vec<_> = members.iter().map(|(name, zone)| member(name, zone)).collect();
            Placement::council(&members).iter().map(|id| id.as_str().to_owned()).collect::<String>()
        };
        assert_eq!(names(&[("a", "x")]), "a");
        assert_eq!(names(&[("a", "x"), ("b", "x")]), "a");
        assert_eq!(names(&[("a", "x"), ("b", "x"), ("c", "y"), ("d", "z")]), "acd");
        let six = [("a", "x"), ("b", "x"), ("c", "x"), ("d", "y"), ("e", "y"), ("f", "z")];
        assert_eq!(names(&six), "abdef");
    }
}
