//! One child process, its log, and its end.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::wait::eventually;

/// How long a process may take to end after it was asked to.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Lines of a log that an error shows.
const LOG_TAIL_LINES: usize = 30;

/// What a process can be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// Please end.
    Terminate,
    /// Read again what can be.
    Hangup,
    /// Stand still.
    Stop,
    /// Go on.
    Continue,
}

/// A child process whose output goes to a file. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; standard output and standard error go to the file `log`.
    pub fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::create(log).with_context(|| log.display().to_string())?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        Ok(Self { name: name.to_owned(), child, log: log.to_owned() })
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What the process wrote.
    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Whether the process wrote at its end that it dies at a step of a move.
    pub(crate) fn died_at(&self, step: &str) -> bool {
        self.log_tail().contains(&format!("dies at {step:?}"))
    }

    /// The exit status, if the process has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Fails if the process has ended, with the end of its log.
    pub fn check_running(&mut self) -> Result<()> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}:\n{}", self.name, self.log_tail()),
        }
    }

    /// Ends the process at once, and waits until it is gone.
    pub fn kill9(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))?;
        self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        Ok(())
    }

    /// Sends SIGKILL without waiting.
    pub fn signal_kill(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("kill {}", self.name))
    }

    /// Sends a signal to a process that runs.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.check_running()?;
        let number = match signal {
            Signal::Interrupt => libc::SIGINT,
            Signal::Terminate => libc::SIGTERM,
            Signal::Hangup => libc::SIGHUP,
            Signal::Stop => libc::SIGSTOP,
            Signal::Continue => libc::SIGCONT,
        };
        let pid = libc::pid_t::try_from(self.pid()).context("a process id is positive")?;
        #[expect(unsafe_code, reason = "the standard library only sends SIGKILL")]
        // SAFETY: kill(2) touches no memory. The child was not waited for yet, so the id is still its own.
        let result = unsafe { libc::kill(pid, number) };
        ensure!(result == 0, "send {signal:?} to {}: {}", self.name, io::Error::last_os_error());
        Ok(())
    }

    /// Waits for the end of the process.
    pub async fn wait_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("end of {}", self.name);
        eventually(&what, limit, async || self.ended()).await
    }

    /// Asks the process to end; fails if it does not do so in time, or with an error.
    pub async fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::Terminate)?;
        self.wait_clean_end().await
    }

    /// Waits for the end of a process that was asked to end; fails if it ends with an error.
    pub async fn wait_clean_end(&mut self) -> Result<()> {
        let status = self.wait_end(END_LIMIT).await?;
        ensure!(
            status.success(),
            "{} ended with {status} after it was asked to end:\n{}",
            self.name,
            self.log_tail()
        );
        Ok(())
    }

    /// The last lines of the log.
    pub fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only when the process is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The memory that a process has in RAM, in bytes.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).context(path)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_ends_when_asked_and_its_log_is_kept() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let script = "trap 'echo bye; exit 0' TERM; echo up; while true; do sleep 0.01; done";
        let mut command = Command::new("bash");
        let mut process = Process::spawn("script", command.args(["-c", script]), &folder.path().join("log"))?;
        eventually("up", END_LIMIT, async || Ok(process.log_text().contains("up").then_some(()))).await?;
        process.terminate().await?;
        assert_eq!(process.log_text(), "up\nbye\n");
        assert!(process.check_running().is_err());
        Ok(())
    }

    #[test]
    fn a_dropped_process_is_gone() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let process = Process::spawn("sleep", Command::new("sleep").arg("600"), &folder.path().join("log"))?;
        let pid = process.pid();
        assert!(resident_bytes(pid)? > 0);
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        Ok(())
    }
}
