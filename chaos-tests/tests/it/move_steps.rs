//! Those who take part in a move of shards die at its named steps (`saturn_ring::steps`) and come back: the moves end by
//! themselves, and no client notices.
//!
//! Four nodes in three zones: all that one of the two in the first zone holds moves to the other, and back, again and
//! again. A node whose part a step is was started so that it dies there.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use saturn_chaos_tests::placement::{
    check_settled, council, equal_replicas, member_list_leader, settled, shard_leaders,
};
use saturn_chaos_tests::{
    Cluster, ClusterOptions, Outcome, Reader, Tolerance, Writer, WriterOptions, eventually,
};
use saturn_ring::steps::{Participant, STEPS};

const TENANT: &str = "steps";
const SHARDS: usize = 4;
const ALL: [usize; 4] = [0, 1, 2, 3];
/// The nodes of the second and third zone, which are in all groups.
const STEADY: [usize; 2] = [1, 2];
const LIMIT: Duration = Duration::from_secs(60);

// The binaries are built together with this test, and so with its features.
const _: () = assert!(fail::has_failpoints());

/// A cluster whose shards move to and fro under load.
struct Trial {
    cluster: Cluster,
    writer: Writer,
    reader: Reader,
    /// The node of the first zone that holds its shards.
    from: usize,
    /// The other one.
    to: usize,
}

/// A node that will die.
#[derive(Clone, Copy, Debug)]
struct Doomed {
    index: usize,
    step: &'static str,
    /// When it comes back after that. At once is before the others miss it.
    back_after: Duration,
}

/// Which of those who are to die must do so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deaths {
    All,
    /// Those that come to their steps before all is moved.
    Some,
}

impl Trial {
    async fn start() -> Result<Self> {
        let extra_args =
            vec![format!("--cluster.shards={SHARDS}"), "--cluster.replication-factor=3".to_owned()];
        let options = ClusterOptions { nodes: ALL.len(), zones: 3, extra_args, ..ClusterOptions::default() };
        let mut cluster = Cluster::start_with(options).await?;
        cluster.tolerate(Tolerance::Warnings);
        let targets: Vec<_> = ALL.iter().map(|index| cluster.endpoint(*index, TENANT)).collect();
        let writer = Writer::start(WriterOptions {
            number: 1,
            lanes: 16,
            targets: targets.clone(),
            retries: 60,
            pause: Duration::from_millis(20),
        });
        let reader = Reader::start(targets, writer.counter());
        cluster.saturnctl(STEADY[0], &["ring", "drain", "node-4", "--yes"])?;
        settled(&cluster, STEADY[0], &[0, 1, 2]).await?;
        Ok(Self { cluster, writer, reader, from: 0, to: 3 })
    }

    /// Starts the node anew whose part in the next move the step is.
    async fn doom(&mut self, step: &'static str, participant: Participant) -> Result<Doomed> {
        let index = match participant {
            Participant::Target => self.restart_to_die(self.to, step).await?,
            Participant::Source => self.restart_to_die(self.from, step).await?,
            Participant::GroupLeader => self.doom_group_leader(step).await?,
            Participant::Rebalancer => self.doom_rebalancer(step).await?,
        };
        Ok(Doomed { index, step, back_after: Duration::ZERO })
    }

    async fn restart_to_die(&mut self, index: usize, step: &str) -> Result<usize> {
        self.cluster.kill9(index)?;
        self.cluster.start_to_die(index, step).await?;
        Ok(index)
    }

    /// A leader that comes back before it is missed leads again.
    async fn doom_group_leader(&mut self, step: &str) -> Result<usize> {
        for _ in 0..5 {
            let leaders = eventually("all groups have leaders", LIMIT, async || {
                let leaders = shard_leaders(&self.cluster, STEADY[0]).await?;
                ensure!(leaders.len() == SHARDS, "{leaders:?}");
                Ok(Some(leaders))
            });
            let leader = leaders.await?[0];
            self.restart_to_die(leader, step).await?;
            let leaders = shard_leaders(&self.cluster, leader).await;
            // It may be dead already: voters change a moment after a move.
            if leaders.is_err() || leaders.is_ok_and(|leaders| leaders.contains(&leader)) {
                return Ok(leader);
            }
            self.cluster.kill9(leader)?;
            self.cluster.restart(leader).await?;
        }
        bail!("no node leads a group that led it before it was started anew")
    }

    /// As above. A leader that is to be drained would not see the moves through, as it leaves the council.
    async fn doom_rebalancer(&mut self, step: &str) -> Result<usize> {
        for _ in 0..5 {
            let leader = eventually("the member list has a leader", LIMIT, async || {
                member_list_leader(&self.cluster, STEADY[0]).await.map(Some)
            });
            let leader = leader.await?;
            if leader == self.from {
                self.cluster.kill9(leader)?;
                eventually("the member list has another leader", LIMIT, async || {
                    let now = member_list_leader(&self.cluster, STEADY[0]).await?;
                    ensure!(now != leader, "it is still led by the one that was killed");
                    Ok(Some(()))
                })
                .await?;
                self.cluster.restart(leader).await?;
                continue;
            }
            self.restart_to_die(leader, step).await?;
            let now = member_list_leader(&self.cluster, leader).await;
            if now.is_err() || now.is_ok_and(|now| now == leader) {
                return Ok(leader);
            }
            self.cluster.kill9(leader)?;
            self.cluster.restart(leader).await?;
        }
        bail!("no node leads the member list that led it before it was started anew")
    }

    /// Moves all shards of one node to another, and starts again who dies on the way. Returns how many died.
    async fn move_all(&mut self, doomed: &[Doomed], deaths: Deaths) -> Result<usize> {
        let is_doomed = |index: &usize| doomed.iter().any(|doomed| doomed.index == *index);
        let ask = STEADY.into_iter().chain(ALL).find(|index| !is_doomed(index)).context("all are to die")?;
        let (old, new) =
            (self.cluster.nodes()[self.from].id.clone(), self.cluster.nodes()[self.to].id.clone());
        let mut owners = [STEADY[0], STEADY[1], self.to];
        owners.sort_unstable();
        let order = self.cluster.spawn_saturnctl(ask, &["ring", "replace", &old, &new, "--yes"]);
        let deadline = Instant::now() + 2 * LIMIT;
        let mut alive = doomed.to_vec();
        let mut dead: Vec<(Doomed, Instant)> = Vec::new();
        loop {
            for one in std::mem::take(&mut alive) {
                match self.cluster.has_died(one.index, one.step)? {
                    true => dead.push((one, Instant::now())),
                    false => alive.push(one),
                }
            }
            let settled = check_settled(&self.cluster, ask, &owners).await;
            let is_over =
                order.is_finished() && settled.is_ok() && (alive.is_empty() || deaths == Deaths::Some);
            for (one, since) in std::mem::take(&mut dead) {
                match since.elapsed() >= one.back_after {
                    true => self.cluster.spawn(one.index)?,
                    false => dead.push((one, since)),
                }
            }
            if is_over && dead.is_empty() {
                break;
            }
            ensure!(Instant::now() < deadline, "alive: {alive:?}, dead: {dead:?}, the shards: {settled:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        order.await.context("saturnctl")??;
        for one in &alive {
            self.cluster.kill9(one.index)?;
            self.cluster.spawn(one.index)?;
        }
        self.cluster.wait_ready().await?;
        // Else the next move may undo the change of the council before it began, and nobody passes its steps.
        let wanted = BTreeSet::from([STEADY[0], STEADY[1], self.to]);
        eventually("the council follows", LIMIT, async || {
            let council = council(&self.cluster, STEADY[0]).await?;
            ensure!(council == wanted, "{council:?}");
            Ok(Some(()))
        })
        .await?;
        std::mem::swap(&mut self.from, &mut self.to);
        Ok(doomed.len() - alive.len())
    }

    /// Checks what clients and replicas have in the end.
    async fn finish(self) -> Result<()> {
        let Self { cluster, writer, reader, .. } = self;
        writer.wait_acked(400, LIMIT).await?;
        let answers = reader.stop().await?;
        ensure!(answers >= 10, "only {answers} answers were complete");
        let history = writer.stop().await?;
        let unknown = history.count(Outcome::Unknown) + history.count(Outcome::NotSent);
        ensure!(unknown == 0, "{unknown} samples were not acked for good");
        for index in ALL {
            history.check(&cluster.endpoint(index, TENANT)).await?;
        }
        // What single replicas missed meanwhile, they have after each has asked the others.
        for index in ALL {
            cluster.saturnctl(index, &["repair"])?;
        }
        equal_replicas(&cluster, &ALL).await?;
        cluster.finish().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_dies_at_a_step_of_a_move_delays_it_and_no_more() -> Result<()> {
    let mut trial = Trial::start().await?;
    for (step, participant) in STEPS {
        let doomed = trial.doom(step, *participant).await.context(*step)?;
        trial.move_all(&[doomed], Deaths::All).await.context(*step)?;
    }
    trial.finish().await
}

/// Numbers that are the same each time.
struct Draws(u64);

impl Draws {
    /// One of these.
    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        of[(self.0 >> 33) as usize % of.len()]
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a whole number"))
}

/// `SATURN_ROUNDS` sets of moves, of which each loses several of its participants for some seconds: which and where
/// follows from `SATURN_SEED`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_who_die_in_the_same_moves_delay_them_and_no_more() -> Result<()> {
    let (rounds, mut draws) = (setting("SATURN_ROUNDS", 4), Draws(setting("SATURN_SEED", 1)));
    let mut trial = Trial::start().await?;
    let mut deaths = 0;
    for round in 0..rounds {
        let mut doomed: Vec<Doomed> = Vec::new();
        let left_out = draws.pick(&[Participant::GroupLeader, Participant::Target, Participant::Source]);
        for participant in
            [Participant::Rebalancer, Participant::GroupLeader, Participant::Target, Participant::Source]
        {
            let steps: Vec<_> = STEPS.iter().filter(|(_, who)| *who == participant).collect();
            let (step, _) = draws.pick(&steps);
            let seconds = draws.pick(&[0, 0, 1, 4, 8]);
            if participant != left_out {
                let one = trial.doom(step, participant).await.with_context(|| format!("{round}: {step}"))?;
                // Who leads more than one group dies at the step of the last.
                doomed.retain(|earlier| earlier.index != one.index);
                doomed.push(Doomed { back_after: Duration::from_secs(seconds), ..one });
            }
        }
        let moved = trial.move_all(&doomed, Deaths::Some).await;
        deaths += moved.with_context(|| format!("{round}: {doomed:?}"))?;
    }
    ensure!(deaths as u64 > rounds, "only {deaths} nodes died");
    trial.finish().await
}
