//! How a cluster comes to be: one node, the founder, forms the placement once; the others pull it.
//!
//! The founder is the node whose gossip address is first in the join list; a node without a join list is
//! its own founder. The rule is pure: it looks at what gossip says and answers what to do now.
//!
//! Invariants: a node that holds a placement never forms one, nor does a node that knows of anyone holding
//! one, nor one that has not yet heard from every living member itself. A founder that lost its disk
//! therefore pulls the old placement instead of founding a second cluster. A node that is not alive at the
//! moment of forming owns no shard: the join list should name every node that shall store data.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::{Liveness, Member, MemberState, PlacementMember};

/// How long enough members must have been alive when not all of the join list is.
const SETTLE: Duration = Duration::from_secs(5);

/// What the rule looks at.
#[derive(Clone, Debug)]
pub struct FormationView<'a> {
    /// Time since start, of the same clock as the members' `since`.
    pub now: Duration,
    /// This node.
    pub me: &'a Member,
    /// Version of the placement that this node holds, 0 for none.
    pub placement_version: u64,
    /// The join list, as every node has it: the first entry is the founder's gossip address.
    pub join: &'a [SocketAddr],
    /// Replicas that each shard shall have.
    pub replication_factor: u8,
    /// What gossip knows ([`crate::Membership::members`]), this node included.
    pub members: Vec<&'a MemberState>,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FormationDecision {
    /// Nothing: this node holds a placement.
    Formed,
    /// Nothing yet; decide again when something changes or a second has passed.
    Wait(WaitReason),
    /// Form the placement over these members, store it, then announce it.
    Form(Vec<PlacementMember>),
    /// Fetch the placement from any of these members.
    Pull(Vec<Member>),
}

/// Why a node without a placement waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WaitReason {
    /// The founder forms the cluster; it has not, or has not been heard of.
    ForFounder(SocketAddr),
    /// This node is the founder and needs more members.
    ForMembers {
        /// How many are alive.
        alive: usize,
        /// How many are needed at least.
        wanted: usize,
    },
    /// This node is the founder and gives the rest of the join list a few seconds.
    ForStragglers,
    /// This node is the founder, and some member has not yet said whether it holds a placement.
    ForWord(Member),
}

impl fmt::Display for WaitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ForFounder(addr) => write!(f, "waiting for the founder {addr} to form the cluster"),
            Self::ForMembers { alive, wanted } => {
                write!(f, "waiting for members: {alive} of {wanted} are alive")
            }
            Self::ForStragglers => write!(f, "waiting a few seconds for the rest of the join list"),
            Self::ForWord(member) => write!(f, "waiting for a packet from {}", member.id),
        }
    }
}

/// The rule.
pub fn decide(view: &FormationView<'_>) -> FormationDecision {
    if view.placement_version > 0 {
        return FormationDecision::Formed;
    }
    let others = || view.members.iter().filter(|state| state.member.id != view.me.id);
    let holders: Vec<Member> = others()
        .filter(|state| state.liveness != Liveness::Down && state.placement_version > Some(0))
        .map(|state| state.member.clone())
        .collect();
    if !holders.is_empty() {
        return FormationDecision::Pull(holders);
    }
    if let Some(founder) = view.join.first().filter(|founder| **founder != view.me.gossip_addr) {
        return FormationDecision::Wait(WaitReason::ForFounder(*founder));
    }
    let silent = others().find(|state| state.liveness != Liveness::Down && state.placement_version.is_none());
    if let Some(silent) = silent {
        return FormationDecision::Wait(WaitReason::ForWord(silent.member.clone()));
    }
    let alive: Vec<_> = view.members.iter().filter(|state| state.liveness == Liveness::Alive).collect();
    // A majority of the join list, so that a founder that lost its disk and sees nobody does not start over.
    let wanted = usize::from(view.replication_factor).max(view.join.len() / 2 + 1);
    if alive.len() < wanted {
        return FormationDecision::Wait(WaitReason::ForMembers { alive: alive.len(), wanted });
    }
    let everybody = view.join.iter().all(|seed| alive.iter().any(|state| state.member.gossip_addr == *seed));
    let settled = alive.iter().filter(|state| view.now >= state.since + SETTLE).count();
    if everybody || settled >= wanted {
        let members = alive.iter().map(|state| PlacementMember::from(&state.member));
        return FormationDecision::Form(members.collect());
    }
    FormationDecision::Wait(WaitReason::ForStragglers)
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{Generation, NodeId, Zone};

    fn addr(node: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 7000 + node))
    }

    fn state(node: u16, liveness: Liveness, since_secs: u64, placement_version: Option<u64>) -> MemberState {
        let member = Member {
            id: NodeId::new(&format!("n{node}")).expect("valid"),
            generation: Generation(Uuid::nil()),
            zone: Zone::new(&format!("z{node}")).expect("valid"),
            gossip_addr: addr(node),
            grpc_addr: addr(node + 100),
            http_addr: addr(node + 200),
        };
        MemberState { member, liveness, since: Duration::from_secs(since_secs), placement_version }
    }

    fn fresh(node: u16) -> MemberState {
        state(node, Liveness::Alive, 1, Some(0))
    }

    /// Decides for the first of `members`, two seconds after start.
    fn decide_for_first(members: &[MemberState], join: &[SocketAddr], rf: u8) -> FormationDecision {
        decide_at(2, members, join, rf)
    }

    fn decide_at(secs: u64, members: &[MemberState], join: &[SocketAddr], rf: u8) -> FormationDecision {
        decide(&FormationView {
            now: Duration::from_secs(secs),
            me: &members[0].member,
            placement_version: members[0].placement_version.unwrap_or(0),
            join,
            replication_factor: rf,
            members: members.iter().collect(),
        })
    }

    fn formed_over(decision: FormationDecision) -> Vec<String> {
        match decision {
            FormationDecision::Form(members) => members.into_iter().map(|m| m.id.into()).collect(),
            other => panic!("not formed: {other:?}"),
        }
    }

    #[test]
    fn a_node_without_a_join_list_founds_alone() {
        assert_eq!(formed_over(decide_for_first(&[fresh(1)], &[], 1)), ["n1"]);
    }

    #[test]
    fn the_founder_forms_when_the_whole_join_list_is_there() {
        let join = [addr(1), addr(2), addr(3)];
        let members = [fresh(1), fresh(2), fresh(3)];
        assert_eq!(formed_over(decide_for_first(&members, &join, 3)), ["n1", "n2", "n3"]);
        let wait = FormationDecision::Wait(WaitReason::ForMembers { alive: 2, wanted: 3 });
        assert_eq!(decide_at(99, &members[..2], &join, 3), wait);
    }

    #[test]
    fn the_founder_waits_a_little_for_stragglers() {
        let join = [addr(1), addr(2), addr(3), addr(4)];
        let members = [fresh(1), fresh(2), fresh(3)];
        let wait = FormationDecision::Wait(WaitReason::ForStragglers);
        assert_eq!(decide_at(5, &members, &join, 3), wait);
        assert_eq!(formed_over(decide_at(6, &members, &join, 3)).len(), 3);
    }

    #[test]
    fn others_wait_for_the_founder_and_then_pull() {
        let join = [addr(2), addr(1), addr(3)];
        let mut members = [fresh(1), fresh(2), fresh(3)];
        let wait = FormationDecision::Wait(WaitReason::ForFounder(addr(2)));
        assert_eq!(decide_at(99, &members, &join, 3), wait);
        members[1].placement_version = Some(1);
        let pull = FormationDecision::Pull(vec![members[1].member.clone()]);
        assert_eq!(decide_for_first(&members, &join, 3), pull);
    }

    #[test]
    fn a_founder_that_lost_its_disk_pulls() {
        let join = [addr(1), addr(2), addr(3)];
        let mut members = [fresh(1), fresh(2), fresh(3)];
        members[2].placement_version = None;
        let wait = FormationDecision::Wait(WaitReason::ForWord(members[2].member.clone()));
        assert_eq!(decide_at(99, &members, &join, 3), wait);
        members[2].placement_version = Some(4);
        let pull = FormationDecision::Pull(vec![members[2].member.clone()]);
        assert_eq!(decide_for_first(&members, &join, 3), pull);
    }

    #[test]
    fn a_founder_alone_does_not_start_over_even_with_one_replica() {
        let join = [addr(1), addr(2), addr(3)];
        let wait = FormationDecision::Wait(WaitReason::ForMembers { alive: 1, wanted: 2 });
        assert_eq!(decide_at(99, &[fresh(1)], &join, 1), wait);
    }

    #[test]
    fn a_holder_never_forms_and_the_dead_do_not_count() {
        let join = [addr(1), addr(2), addr(3)];
        let mut members = [fresh(1), fresh(2), fresh(3)];
        members[1].liveness = Liveness::Down;
        let wait = FormationDecision::Wait(WaitReason::ForMembers { alive: 2, wanted: 3 });
        assert_eq!(decide_at(99, &members, &join, 3), wait);
        members[1].liveness = Liveness::Alive;
        members[0].placement_version = Some(1);
        assert_eq!(decide_for_first(&members, &join, 3), FormationDecision::Formed);
    }
}
