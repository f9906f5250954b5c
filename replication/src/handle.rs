//! The placement that this node acts on.
//!
//! Readers get a consistent snapshot. Changes move a shard's epoch forward only, and are durable before
//! anyone sees them: acting under an epoch and then forgetting it would undo the fence. Changes that come while one is
//! stored are stored together after it, as each costs a write of everything. This module does not decide who owns what.

use std::any::Any;
use std::error::Error;
use std::fmt;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use saturn_model::ShardId;
use saturn_ring::{Epoch, Placement, PlacementError, PlacementMember, ShardRecord};

/// Whatever went wrong when storing a placement.
pub type PersistError = Box<dyn Error + Send + Sync>;

type Persist = Box<dyn Fn(&Placement) -> Result<Held, PersistError> + Send + Sync>;

/// What must be held until a placement that was made durable is in force; then it is dropped.
pub type Held = Option<Box<dyn Any + Send>>;

/// The current placement, shared by everything on this node.
pub struct PlacementHandle {
    current: RwLock<Arc<Placement>>,
    /// Held while changes are stored; makes them happen one after another.
    persist: Mutex<Persist>,
    /// Valid records whose adopters wait for `persist`: whoever gets it stores them all.
    waiting: Mutex<Vec<(ShardId, ShardRecord)>>,
}

/// Who belongs to the cluster, as of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberList {
    /// Grows with every change.
    pub version: u64,
    /// By id.
    pub members: Vec<PlacementMember>,
}

/// What became of a record or placement that was offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// It is in force now.
    Adopted,
    /// Nothing in it is newer than what is known.
    Known,
}

/// Why a record or placement was not adopted. The old one stays in force.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// It belongs to another cluster.
    #[error("the placement is of another cluster")]
    ForeignCluster,
    /// It makes no sense here.
    #[error("the newer placement is not valid")]
    Invalid(#[from] PlacementError),
    /// There is no such shard.
    #[error("there is no shard {0}")]
    NoSuchShard(ShardId),
    /// It could not be stored.
    #[error("the newer placement could not be stored")]
    Persist(#[source] PersistError),
}

impl PlacementHandle {
    /// Starts from a placement that is durable already. `persist` must make its argument durable before
    /// it returns; it may block.
    pub fn new(
        placement: Placement,
        persist: impl Fn(&Placement) -> Result<Held, PersistError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            current: RwLock::new(Arc::new(placement)),
            persist: Mutex::new(Box::new(persist)),
            waiting: Mutex::default(),
        }
    }

    /// The placement now.
    pub fn load(&self) -> Arc<Placement> {
        Arc::clone(&self.current.read())
    }

    /// Takes over a newer record of a shard. Blocks while it is stored.
    pub fn adopt(&self, shard: ShardId, record: ShardRecord) -> Result<Adoption, AdoptError> {
        self.adopt_all(&[(shard, record)], None)
    }

    /// Takes over those records that are newer, and the member list if it is. Blocks while they are stored, all at
    /// once.
    pub fn adopt_all(
        &self,
        records: &[(ShardId, ShardRecord)],
        members: Option<&MemberList>,
    ) -> Result<Adoption, AdoptError> {
        if !is_newer(&self.load(), records, members)? {
            return Ok(Adoption::Known);
        }
        self.waiting.lock().extend_from_slice(records);
        let persist = self.persist.lock();
        let mut placement = Placement::clone(&self.load());
        let mine = take_over(&mut placement, records, members)?;
        let others = std::mem::take(&mut *self.waiting.lock());
        let others = take_over(&mut placement, &others, None)?;
        if mine == Adoption::Known && others == Adoption::Known {
            // Somebody else has stored them meanwhile.
            return Ok(Adoption::Adopted);
        }
        placement.validate()?;
        let held = persist(&placement).map_err(AdoptError::Persist)?;
        *self.current.write() = Arc::new(placement);
        drop(held);
        Ok(Adoption::Adopted)
    }

    /// Takes over what is newer in `theirs`: shard by shard the record of the higher epoch, and the member
    /// list of the higher version. Blocks while it is stored.
    pub fn adopt_placement(&self, theirs: &Placement) -> Result<Adoption, AdoptError> {
        theirs.validate()?;
        if theirs.cluster != self.load().cluster {
            return Err(AdoptError::ForeignCluster);
        }
        let records: Vec<_> = (0..).map(ShardId).zip(theirs.shards.iter().cloned()).collect();
        let members = MemberList { version: theirs.version, members: theirs.members.clone() };
        self.adopt_all(&records, Some(&members))
    }

    /// Does something that is right only under this epoch of a shard's record, and lets nothing be adopted meanwhile.
    /// `None`, and nothing is done, if the record has another one. Blocks.
    pub fn while_at<R>(&self, shard: ShardId, epoch: Epoch, work: impl FnOnce() -> R) -> Option<R> {
        let _unchanged = self.persist.lock();
        let is_at = self.load().record(shard).is_some_and(|record| record.epoch == epoch);
        is_at.then(work)
    }
}

/// Whether anything is newer than what a placement has. What is must be valid.
fn is_newer(
    placement: &Placement,
    records: &[(ShardId, ShardRecord)],
    members: Option<&MemberList>,
) -> Result<bool, AdoptError> {
    let mut newer = members.is_some_and(|list| list.version > placement.version);
    for (shard, record) in records {
        let mine = placement.record(*shard).ok_or(AdoptError::NoSuchShard(*shard))?;
        if record.epoch > mine.epoch {
            placement.validate_record(*shard, record)?;
            newer = true;
        }
    }
    Ok(newer)
}

/// Puts into a placement what is newer.
fn take_over(
    placement: &mut Placement,
    records: &[(ShardId, ShardRecord)],
    members: Option<&MemberList>,
) -> Result<Adoption, AdoptError> {
    let mut adoption = Adoption::Known;
    for (shard, record) in records {
        let mine = placement.shards.get_mut(usize::from(shard.0));
        let mine = mine.ok_or(AdoptError::NoSuchShard(*shard))?;
        if record.epoch > mine.epoch {
            mine.clone_from(record);
            adoption = Adoption::Adopted;
        }
    }
    if let Some(list) = members.filter(|list| list.version > placement.version) {
        placement.version = list.version;
        placement.members.clone_from(&list.members);
        adoption = Adoption::Adopted;
    }
    Ok(adoption)
}

impl fmt::Debug for PlacementHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placement = self.load();
        f.debug_struct("PlacementHandle").field("version", &placement.version).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    use saturn_ring::{ClusterId, Generation, PlacementMember, Zone};
    use uuid::Uuid;

    use super::*;

    fn placement() -> Placement {
        let member = |name: &str| {
            PlacementMember::new(
                saturn_ring::NodeId::new(name).expect("valid"),
                Generation(Uuid::nil()),
                Zone::new(name).expect("valid"),
            )
        };
        let members = [member("a"), member("b"), member("c")];
        Placement::form(ClusterId(Uuid::nil()), &members, 4, 3).expect("enough nodes")
    }

    #[test]
    fn epochs_only_grow_and_are_stored_first() {
        let stored = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&stored);
        let handle = PlacementHandle::new(placement(), move |p| {
            seen.store(p.shards[1].epoch.0, Ordering::SeqCst);
            Ok(None)
        });
        let mut record = handle.load().shards[1].clone();
        record.epoch = Epoch(5);
        assert_eq!(handle.adopt(ShardId(1), record.clone()).expect("stored"), Adoption::Adopted);
        assert_eq!((stored.load(Ordering::SeqCst), handle.load().shards[1].epoch), (5, Epoch(5)));
        record.epoch = Epoch(4);
        assert_eq!(handle.adopt(ShardId(1), record.clone()).expect("known"), Adoption::Known);
        assert_eq!(handle.load().shards[1].epoch, Epoch(5));
        assert!(matches!(handle.adopt(ShardId(4), record), Err(AdoptError::NoSuchShard(ShardId(4)))));
    }

    #[test]
    fn what_cannot_be_stored_or_is_damaged_changes_nothing() {
        let broken = Arc::new(AtomicBool::new(true));
        let is_broken = Arc::clone(&broken);
        let handle = PlacementHandle::new(placement(), move |_| {
            if is_broken.load(Ordering::SeqCst) { Err("disk full".into()) } else { Ok(None) }
        });
        let mut record = handle.load().shards[0].clone();
        record.epoch = Epoch(2);
        assert!(matches!(handle.adopt(ShardId(0), record.clone()), Err(AdoptError::Persist(_))));
        assert_eq!(*handle.load(), placement());
        broken.store(false, Ordering::SeqCst);
        record.slots.pop();
        assert!(matches!(handle.adopt(ShardId(0), record), Err(AdoptError::Invalid(_))));
        assert_eq!(*handle.load(), placement());
    }

    #[test]
    fn records_that_wait_are_stored_together() {
        let (stored, writes) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (gate, count) = (Arc::clone(&stored), Arc::clone(&writes));
        let handle = Arc::new(PlacementHandle::new(placement(), move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            // The first write takes until all others wait.
            while gate.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            Ok(None)
        }));
        let adopt = |shard: u16| {
            let handle = Arc::clone(&handle);
            let mut record = handle.load().shards[usize::from(shard)].clone();
            record.epoch = Epoch(2);
            std::thread::spawn(move || handle.adopt(ShardId(shard), record).expect("stored"))
        };
        let first = adopt(0);
        while writes.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let others = [1, 2, 3].map(adopt);
        while handle.waiting.lock().len() < 3 {
            std::thread::yield_now();
        }
        stored.store(1, Ordering::SeqCst);
        for adopted in std::iter::once(first).chain(others) {
            assert_eq!(adopted.join().expect("no panic"), Adoption::Adopted);
        }
        assert!(handle.load().shards.iter().all(|record| record.epoch == Epoch(2)));
        assert_eq!(writes.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn what_is_right_under_one_epoch_is_done_under_no_other() {
        let handle = Arc::new(PlacementHandle::new(placement(), |_| Ok(None)));
        let mut record = handle.load().shards[0].clone();
        record.epoch = Epoch(2);
        let waiting = Arc::clone(&handle);
        let adopting = handle.while_at(ShardId(0), Epoch(1), || {
            let (handle, record) = (Arc::clone(&handle), record.clone());
            let adopting = std::thread::spawn(move || handle.adopt(ShardId(0), record));
            // However long this takes.
            (0..1000).for_each(|_| std::thread::yield_now());
            assert_eq!(waiting.load().shards[0].epoch, Epoch(1));
            adopting
        });
        adopting.expect("it is at 1").join().expect("no panic").expect("stored");
        assert_eq!(handle.while_at(ShardId(0), Epoch(1), || ()), None);
        assert_eq!(handle.while_at(ShardId(0), Epoch(2), || handle.load().shards[0].epoch), Some(Epoch(2)));
        assert_eq!(handle.while_at(ShardId(9), Epoch(1), || ()), None);
    }

    #[test]
    fn a_pushed_placement_brings_only_what_is_newer() {
        let handle = PlacementHandle::new(placement(), |_| Ok(None));
        let mut record = handle.load().shards[0].clone();
        record.epoch = Epoch(9);
        handle.adopt(ShardId(0), record).expect("stored");
        let mut theirs = placement();
        assert_eq!(handle.adopt_placement(&theirs).expect("valid"), Adoption::Known);
        theirs.shards[2].epoch = Epoch(3);
        assert_eq!(handle.adopt_placement(&theirs).expect("valid"), Adoption::Adopted);
        let epochs: Vec<u64> = handle.load().shards.iter().map(|record| record.epoch.0).collect();
        assert_eq!(epochs, [9, 1, 3, 1]);
        theirs.cluster = ClusterId(Uuid::max());
        assert!(matches!(handle.adopt_placement(&theirs), Err(AdoptError::ForeignCluster)));
    }
}
