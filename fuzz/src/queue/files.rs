//! A directory in memory.

use std::collections::BTreeMap;
use std::io;

use modax_mqtt_failover::Bytes;
use modax_mqtt_failover::queue::segment::SegmentId;
use modax_mqtt_failover::queue::storage::Storage;

#[derive(Clone, Default)]
pub(super) struct Files {
    files: BTreeMap<String, Vec<u8>>,
    current: String,
}

impl Files {
    pub(super) fn add(&mut self, id: SegmentId, content: Vec<u8>) {
        self.files.insert(id.file_name(), content);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.files.values().map(|content| content.len() as u64).sum()
    }

    /// Does what disks, crashes and people do to files.
    pub(super) fn damage(&mut self, what: u8, file: u8, at: usize) {
        let names: Vec<_> = self.files.keys().cloned().collect();
        let Some(name) = names.get(usize::from(file) % names.len().max(1)) else { return };
        let Some(mut content) = self.files.remove(name) else { return };
        let at = at.min(content.len());
        match what % 8 {
            0 => content.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << (what / 8 % 8)),
            1 => content.truncate(at),
            2 => drop(content.drain(at..(at + 1 + usize::from(what / 8)).min(content.len()).max(at))),
            3 => content.iter_mut().skip(at).take(64).for_each(|byte| *byte = 0),
            4 => {
                let block: Vec<_> = content.iter().skip(at).take(128).copied().collect();
                let to = usize::from(what / 8) * 16;
                content.splice(to.min(content.len())..(to + block.len()).min(content.len()), block);
            }
            5 => return,
            6 => {
                let id = SegmentId::new(u64::from(what / 8), at as u64);
                self.files.insert(id.file_name(), content);
                return;
            }
            _ => {
                let other = &names[usize::from(what / 8) % names.len()];
                content = self.files.insert(other.clone(), content.clone()).unwrap_or(content);
            }
        }
        self.files.insert(name.clone(), content);
    }
}

impl Storage for &mut Files {
    fn list(&mut self) -> io::Result<Vec<String>> {
        Ok(self.files.keys().cloned().collect())
    }
    fn read(&mut self, name: &str) -> io::Result<Bytes> {
        Ok(self.files.get(name).cloned().ok_or(io::ErrorKind::NotFound)?.into())
    }
    fn create(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        assert!(self.files.insert(name.to_owned(), content.to_vec()).is_none(), "an old file was written over");
        name.clone_into(&mut self.current);
        Ok(())
    }
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.files.get_mut(&self.current).ok_or(io::ErrorKind::NotFound)?.extend_from_slice(bytes);
        Ok(())
    }
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let content = self.files.get_mut(&self.current).ok_or(io::ErrorKind::NotFound)?;
        content.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        Ok(())
    }
    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.files.remove(name).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}
