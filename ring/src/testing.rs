//! What the unit tests of this crate name nodes with.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::{ClusterId, Generation, NodeId, Placement, PlacementMember, Zone};

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).expect("valid")
}

pub(crate) fn set(names: &[&str]) -> BTreeSet<NodeId> {
    names.iter().map(|name| node(name)).collect()
}

pub(crate) fn member(name: &str, zone: &str) -> PlacementMember {
    PlacementMember::new(node(name), Generation(Uuid::nil()), Zone::new(zone).expect("valid"))
}

/// 96 shards with three slots each, over nodes `a0`, `a1`, ... of zone `a` and so on.
pub(crate) fn placement(zones: &[&str], per_zone: usize) -> Placement {
    let nodes = zones.iter().flat_map(|zone| (0..per_zone).map(move |i| member(&format!("{zone}{i}"), zone)));
    let members: Vec<_> = nodes.collect();
    Placement::form(ClusterId(Uuid::nil()), &members, 96, 3).expect("enough nodes")
}
