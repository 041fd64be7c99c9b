//! The disk queue's folder on a real disk: its lock, its files, and a reserve for when the disk is full.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use crate::queue::storage::Storage;

/// The lock's file name; it holds nothing.
const LOCK: &str = "lock";
/// The reserve's file name.
const RESERVE: &str = "reserve";
/// The outcomes of 10,000 messages, as many as a queue holds by default.
const RESERVE_BYTES: u64 = 256 << 10;
/// A block: a disk that has not even that is full.
const LEAST_RESERVE: u64 = 4096;
/// What a disk that fails to read loses at the least.
const BLOCK_BYTES: usize = 4096;

/// A child that this process, or the one before, is just starting holds the lock with all other files until its program
/// begins: so often it is tried again,
#[cfg(unix)]
const LOCK_TRIES: u32 = 50;
/// after so long.
#[cfg(unix)]
const LOCK_WAIT: std::time::Duration = std::time::Duration::from_millis(5);

/// A folder on a real disk, locked against other processes for as long as this lives.
pub(crate) struct Directory {
    path: PathBuf,
    current: Option<(String, File)>,
    reserve: Reserve,
    /// Blocks that cannot be read are zeros, which are damage. A client that starts is refused instead: the disk may give them
    /// back, and what is damage is deleted with its file.
    reads_on: bool,
    /// `None` while reading a directory that no client has ever locked.
    _lock: Option<File>,
}

impl Directory {
    /// Locks a directory that is there against clients, for reading: nothing is written, so that one on a read-only
    /// mount can be read.
    pub(crate) fn existing(path: &Path) -> io::Result<Self> {
        if !path.is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let lock = match File::open(path.join(LOCK)) {
            Ok(file) => Some(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(file) = &lock {
            lock_for(file, Access::Read)?;
        }
        Ok(Self { path: path.to_owned(), current: None, reserve: Reserve::default(), reads_on: true, _lock: lock })
    }

    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        make_folder(path)?;
        let lock = private().create(true).open(path.join(LOCK))?;
        lock_for(&lock, Access::Write)?;
        let reserve = Reserve::find(path);
        Ok(Self { path: path.to_owned(), current: None, reserve, reads_on: false, _lock: Some(lock) })
    }

    /// A file's name is on disk only when its folder is.
    fn sync_names(&self) -> io::Result<()> {
        if cfg!(unix) { File::open(&self.path)?.sync_all() } else { Ok(()) }
    }

    fn current(&mut self) -> io::Result<&mut File> {
        let file = self.current.as_mut().map(|(_, file)| file);
        file.ok_or_else(|| io::Error::other("no file was begun"))
    }
}

/// To write a file that nobody but its owner may read: what plants say is not for all who have an account.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.write(true).truncate(false);
    options
}

/// Makes the folder, and those above it that are missing. Its name is on disk only when the folder above it is.
fn make_folder(path: &Path) -> io::Result<()> {
    let is_missing = |folder: &&Path| !folder.as_os_str().is_empty() && !folder.exists();
    let missing: Vec<_> = path.ancestors().take_while(is_missing).collect();
    fs::create_dir_all(path)?;
    for above in missing.into_iter().filter_map(Path::parent).filter(|_| cfg!(unix)) {
        let above = if above.as_os_str().is_empty() { Path::new(".") } else { above };
        // One that may be written to and not read cannot be synchronised.
        if let Ok(folder) = File::open(above) {
            folder.sync_all()?;
        }
    }
    Ok(())
}

/// Readers bear each other, and no writer.
#[derive(Clone, Copy)]
enum Access {
    Read,
    Write,
}

#[cfg(unix)]
fn lock_for(file: &File, access: Access) -> io::Result<()> {
    use rustix::fs::{FlockOperation, flock};
    let operation = match access {
        Access::Read => FlockOperation::NonBlockingLockShared,
        Access::Write => FlockOperation::NonBlockingLockExclusive,
    };
    let mut tries = 0..LOCK_TRIES;
    loop {
        match flock(file, operation) {
            Err(rustix::io::Errno::AGAIN) if tries.next().is_some() => std::thread::sleep(LOCK_WAIT),
            locked => {
                let taken = |error| io::Error::new(error, "another process has this queue open");
                return locked.map_err(|error| taken(io::Error::from(error).kind()));
            }
        }
    }
}

#[cfg(not(unix))]
fn lock_for(_file: &File, _access: Access) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "a queue on disk is supported on Unix only"))
}

impl Storage for Directory {
    fn list(&mut self) -> io::Result<Vec<String>> {
        let names = fs::read_dir(&self.path)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.collect()
    }

    fn read(&mut self, name: &str) -> io::Result<Bytes> {
        let (path, named) = (self.path.join(name), |error: io::Error| named(name, &error));
        // A pipe would be waited for, and a device may have no end.
        if !fs::metadata(&path).map_err(named)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{name} is no file")));
        }
        let read = fs::read(&path).or_else(|error| if self.reads_on { read_blocks(&path) } else { Err(error) });
        read.map(Bytes::from).map_err(named)
    }

    fn create(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        let mut file = private().create_new(true).open(self.path.join(name))?;
        file.write_all(content)?;
        file.sync_all()?;
        self.sync_names()?;
        self.current = Some((name.to_owned(), file));
        self.reserve.grow(&self.path);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.current()?.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.current()?.sync_data()
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let file = self.current()?;
        file.set_len(length)?;
        file.seek(io::SeekFrom::Start(length)).map(|_| ())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))?;
        // A file that is open goes on to take its room.
        self.current.take_if(|(current, _)| current == name);
        Ok(())
    }

    fn reserve(&mut self) -> io::Result<()> {
        self.reserve.hold(&self.path)
    }

    fn release(&mut self) -> bool {
        self.reserve.release(&self.path)
    }
}

/// All that can be read, with zeros for the rest.
fn read_blocks(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let mut content = vec![0; usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?];
    for (index, block) in content.chunks_mut(BLOCK_BYTES).enumerate() {
        let at = u64::try_from(index.saturating_mul(BLOCK_BYTES)).map_err(io::Error::other)?;
        file.seek(io::SeekFrom::Start(at))?;
        if file.read_exact(block).is_err() {
            block.fill(0);
        }
    }
    Ok(content)
}

fn named(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{name}: {error}"))
}

/// A file of zeros that is deleted when a full disk has no room for outcomes.
#[derive(Default)]
struct Reserve {
    /// Its size; 0 before it was first made. Once given free it comes back as large, before a message is taken.
    bytes: u64,
    is_held: bool,
}

impl Reserve {
    fn find(directory: &Path) -> Self {
        let bytes = fs::metadata(directory.join(RESERVE)).map_or(0, |found| found.len());
        Self { bytes, is_held: bytes >= LEAST_RESERVE }
    }

    fn hold(&mut self, directory: &Path) -> io::Result<()> {
        if self.is_held {
            return Ok(());
        }
        let path = directory.join(RESERVE);
        let bytes = if self.bytes == 0 { fitting(directory) } else { self.bytes };
        // Some limit, a quota's or a file's, and not the disk: then as little as there can be.
        let made = make(&path, bytes).or_else(|error| {
            if error.kind() == io::ErrorKind::StorageFull { Err(error) } else { make(&path, LEAST_RESERVE) }
        });
        if let Err(error) = made {
            // Half of it keeps room that nobody uses.
            let _ = fs::remove_file(&path);
            return Err(error);
        }
        (self.bytes, self.is_held) = (bytes, true);
        Ok(())
    }

    /// One that was made on a nearly full disk is small.
    fn grow(&mut self, directory: &Path) {
        let bytes = fitting(directory);
        if self.is_held && bytes > self.bytes && make(&directory.join(RESERVE), bytes).is_ok() {
            self.bytes = bytes;
        }
    }

    fn release(&mut self, directory: &Path) -> bool {
        self.is_held && {
            self.is_held = false;
            fs::remove_file(directory.join(RESERVE)).is_ok()
        }
    }
}

/// Of a small disk not more than a quarter of what is left.
fn fitting(directory: &Path) -> u64 {
    (free_bytes(directory) / 4).clamp(LEAST_RESERVE, RESERVE_BYTES)
}

/// Written and not merely sized: a sparse file keeps no room. Not synchronised, for it is the room that counts.
fn make(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = private().create(true).open(path)?;
    io::copy(&mut io::repeat(0).take(bytes), &mut file).map(drop)
}

#[cfg(unix)]
fn free_bytes(directory: &Path) -> u64 {
    rustix::fs::statvfs(directory).map_or(u64::MAX, |disk| disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(not(unix))]
const fn free_bytes(_directory: &Path) -> u64 {
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_with_those_above_it_and_found_when_it_is_there() {
        let root = std::env::temp_dir().join(format!("modax-folder-{}", std::process::id()));
        for _ in 0..2 {
            make_folder(&root.join("above/queue")).unwrap();
            assert!(root.join("above/queue").is_dir());
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let file = root.join("above/queue/file");
            private().create(true).open(&file).unwrap();
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o077, 0, "others may read it");
        }
        // Relative ones as well, which end in an empty path and not in a root.
        make_folder(Path::new("src")).unwrap();
        fs::remove_dir_all(root).unwrap();
    }
}
