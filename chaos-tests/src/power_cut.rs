//! A disk that loses everything unsynced: a power cut without the power.
//!
//! An ext4 file system in a file, mounted through a loop device. `EXT4_IOC_SHUTDOWN` without a flush of the
//! journal drops every write that was not synced, at once: later writes fail with EIO, and after the next
//! mount only what was synced is there. Killing a process loses nothing of the kind, because the page cache
//! outlives it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::wait::eventually;

/// Size of the file system. The file is sparse.
const DISK_BYTES: u64 = 1 << 30;

/// `_IOR('X', 125, __u32)` of the kernel's `fs/ext4/ext4.h`.
const EXT4_IOC_SHUTDOWN: libc::Ioctl = 0x8004_587d_u32 as libc::Ioctl;

/// Drop the journal's unwritten part too, as a power cut does.
const EXT4_GOING_FLAGS_NOLOGFLUSH: u32 = 2;

/// How long an unmount may find the file system busy.
const UNMOUNT_LIMIT: Duration = Duration::from_secs(10);

/// A mounted disk. It is unmounted when this is dropped.
#[derive(Debug)]
pub struct PowerCutDisk {
    image: PathBuf,
    mount_point: PathBuf,
}

impl PowerCutDisk {
    /// Makes and mounts a disk; its image and mount point are in `folder`, with `name` in theirs.
    pub fn create(folder: &Path, name: &str) -> Result<Self> {
        let hint =
            "power-cut tests mount a loop device: run them as root on a host with loop devices and e2fsprogs";
        let image = folder.join(format!("{name}.ext4"));
        let mount_point = folder.join(name);
        std::fs::create_dir(&mount_point)?;
        File::create_new(&image)?.set_len(DISK_BYTES)?;
        run(Command::new("/sbin/mkfs.ext4").args(["-q", "-F"]).arg(&image)).context(hint)?;
        let disk = Self { image, mount_point };
        disk.mount().context(hint)?;
        Ok(disk)
    }

    /// Where the disk is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }

    /// Loses everything unsynced. Until [`Self::remount`] every write fails.
    pub fn cut(&self) -> Result<()> {
        let folder = File::open(&self.mount_point)?;
        let flags = EXT4_GOING_FLAGS_NOLOGFLUSH;
        #[expect(unsafe_code, reason = "the ioctl has no safe form")]
        // SAFETY: the descriptor is open, and the ioctl reads one u32 through the pointer.
        let result = unsafe { libc::ioctl(folder.as_raw_fd(), EXT4_IOC_SHUTDOWN, &raw const flags) };
        ensure!(result == 0, "EXT4_IOC_SHUTDOWN: {}", io::Error::last_os_error());
        Ok(())
    }

    /// The power is back: mounts the disk again, which replays its journal. No process may use it.
    pub async fn remount(&self) -> Result<()> {
        eventually("unmount", UNMOUNT_LIMIT, async || self.unmount().map(Some)).await?;
        self.mount()
    }

    fn mount(&self) -> Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.mount_point))
    }

    fn unmount(&self) -> Result<()> {
        run(Command::new("umount").arg(&self.mount_point))
    }
}

impl Drop for PowerCutDisk {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            // A process of a failed test may still be there: detach now, the kernel does the rest.
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.mount_point));
        }
        let _ = std::fs::remove_file(&self.image);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
