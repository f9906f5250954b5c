//! The storage engine's crash safety: power cuts at random moments and at every named step, some of them again
//! during recovery. After each: it opens, no acknowledged sample is lost, no value is wrong, and what was deleted stays deleted.
//!
//! `SATURN_CUTS` says how many (`make power-cuts` does 200), `SATURN_SEED` repeats a run.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use saturn_chaos_tests::PowerCutDisk;
use saturn_chaos_tests::crash::{Said, Told};
use saturn_storage::STEPS;

/// Least cuts of a usual run, which is at every step once and at some random moments.
const CUTS: usize = 26;
/// Cuts after which a run goes on with a new data directory.
const CUTS_PER_DIRECTORY: usize = 13;
/// How long a step may take to be reached.
const STEP_LIMIT: Duration = Duration::from_secs(40);
const OPEN_LIMIT: Duration = Duration::from_secs(60);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// A writer process. It is killed when this is dropped.
struct CrashWriter {
    process: Child,
    heard: Arc<Mutex<Vec<Said>>>,
    listener: Option<std::thread::JoinHandle<()>>,
}

impl CrashWriter {
    fn start(dir: &Path, told: &Told, stop: Option<(&str, u64)>) -> Result<Self> {
        let from = told.next().map(|number| number.to_string()).join(",");
        let mut command = Command::new(env!("CARGO_BIN_EXE_storage-crash-writer"));
        command.arg(dir).arg(from).stdout(Stdio::piped()).stderr(Stdio::null());
        if let Some((step, times)) = stop {
            command.arg(step).arg(times.to_string());
        }
        let mut process = command.spawn().context("storage-crash-writer")?;
        let lines = BufReader::new(process.stdout.take().context("a pipe")?).lines();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let shared = Arc::clone(&heard);
        // A line that was cut off by the kill was never said.
        let listen = move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(said) = line.parse() {
                    shared.lock().expect("nobody panics with it").push(said);
                }
            }
        };
        Ok(Self { process, heard, listener: Some(std::thread::spawn(listen)) })
    }

    /// Waits until something was said. `None` if it was not in time.
    fn wait(&mut self, limit: Duration, wanted: impl Fn(&[Said]) -> bool) -> Result<Option<()>> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            let heard = self.heard.lock().expect("nobody panics with it");
            if let Some(Said::Failed(text)) = heard.iter().find(|said| matches!(said, Said::Failed(_))) {
                bail!("the engine failed on a good disk: {text}");
            }
            if wanted(&heard) {
                return Ok(Some(()));
            }
            drop(heard);
            ensure!(self.process.try_wait()?.is_none(), "the writer died");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(None)
    }

    /// Ends it while `cut` takes the power away, and tells all that it said.
    ///
    /// What it calls done while the power goes is not counted as done: Linux lets an fdatasync that races with
    /// the ioctl return without an error and without having written (in 3 of 100 cuts of a plain file).
    fn kill(mut self, told: &mut Told, cut: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.heard.lock().expect("nobody panics with it").len();
        cut()?;
        self.process.kill()?;
        self.process.wait()?;
        self.listener.take().context("once")?.join().expect("the listener does not panic");
        let heard = self.heard.lock().expect("nobody panics with it");
        let counts = |(at, said): &(usize, &Said)| {
            *at < before || !matches!(said, Said::Acked(..) | Said::Deleted(..))
        };
        heard.iter().enumerate().filter(counts).for_each(|(_, said)| told.hear(said));
        Ok(())
    }
}

impl Drop for CrashWriter {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What happened in a run.
#[derive(Debug, Default)]
struct Tally {
    cuts: usize,
    again_in_recovery: usize,
    at_steps: BTreeMap<String, usize>,
    acked: u64,
    checked: u64,
}

struct Run {
    disk: PowerCutDisk,
    random: Random,
    told: Told,
    directory: usize,
    tally: Tally,
}

impl Run {
    fn dir(&self) -> std::path::PathBuf {
        self.disk.path().join(format!("data-{}", self.directory))
    }

    /// Lets a writer run to `step`, or to a random moment, and cuts the power there.
    async fn cut(&mut self, step: Option<&str>) -> Result<()> {
        let times = 1 + self.random.below(3);
        let stop = step.map(|step| (step, if step.starts_with("open: ") { 1 } else { times }));
        let mut writer = CrashWriter::start(&self.dir(), &self.told, stop)?;
        let reached = |said: &[Said]| said.iter().any(|said| matches!(said, Said::Reached(_)));
        match step {
            Some(step) => {
                if writer.wait(STEP_LIMIT, reached)?.is_some() {
                    *self.tally.at_steps.entry(step.to_owned()).or_default() += 1;
                }
            }
            None => {
                let opened = writer.wait(OPEN_LIMIT, |said| said.contains(&Said::Open))?;
                ensure!(opened.is_some(), "the engine does not open in {OPEN_LIMIT:?}");
                let acks = usize::try_from(self.random.below(300)).expect("small");
                let enough =
                    |said: &[Said]| said.iter().filter(|s| matches!(s, Said::Acked(..))).count() > acks;
                ensure!(writer.wait(OPEN_LIMIT, enough)?.is_some(), "no {acks} appends in {OPEN_LIMIT:?}");
                std::thread::sleep(Duration::from_micros(self.random.below(5000)));
            }
        }
        writer.kill(&mut self.told, || self.disk.cut())?;
        self.tally.cuts += 1;
        self.disk.remount().await
    }

    async fn one(&mut self, step: Option<&str>) -> Result<()> {
        self.cut(step).await?;
        while self.random.below(4) == 0 {
            let steps: Vec<&str> = STEPS.iter().copied().filter(|step| step.starts_with("open: ")).collect();
            let again = steps[usize::try_from(self.random.below(steps.len() as u64))?];
            self.cut(Some(again)).await.context("the cut during recovery")?;
            self.tally.again_in_recovery += 1;
        }
        let found = self.told.check(&self.dir())?;
        self.tally.checked += found.kept;
        if self.tally.cuts / CUTS_PER_DIRECTORY > self.directory {
            self.tally.acked += self.told.acked();
            std::fs::remove_dir_all(self.dir())?;
            self.directory += 1;
            self.told = Told::default();
        }
        Ok(())
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_cuts_at_random_moments_and_at_every_step() -> Result<()> {
    let seed = setting("SATURN_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos())
    });
    let cuts = setting("SATURN_CUTS").map_or(CUTS, |cuts| usize::try_from(cuts).expect("a small number"));
    let folder = tempfile::Builder::new().prefix("saturn-cuts-").tempdir()?;
    let disk = PowerCutDisk::create(folder.path(), "disk")?;
    let (random, told, tally) = (Random(seed), Told::default(), Tally::default());
    let mut run = Run { disk, random, told, directory: 0, tally };
    // Four of five cuts are at steps, all of them in turn.
    let mut steps = STEPS.iter().copied().cycle();
    let started = Instant::now();
    let mut number = 0;
    while run.tally.cuts < cuts || number < STEPS.len() * 5 / 4 + 1 {
        number += 1;
        let step = if number % 5 == 0 { None } else { steps.next() };
        run.one(step).await.with_context(|| {
            format!("after {} cuts, the last at {step:?}; SATURN_SEED={seed}", run.tally.cuts)
        })?;
    }
    run.tally.acked += run.told.acked();
    println!("seed {seed}, {:?}: {:#?}", started.elapsed(), run.tally);
    let missed: Vec<&&str> = STEPS.iter().filter(|step| !run.tally.at_steps.contains_key(**step)).collect();
    ensure!(missed.is_empty(), "no cut was at {missed:?}; SATURN_SEED={seed}");
    Ok(())
}
