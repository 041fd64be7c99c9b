//! What a disk queue asks of the place where its files are: a folder on a real disk, or a test's idea of one.

use std::io;

use bytes::Bytes;

/// Where a log keeps its files: a folder, or a test's idea of one.
pub trait Storage {
    /// Names of all files.
    ///
    /// # Errors
    /// Whatever the folder says.
    fn list(&mut self) -> io::Result<Vec<String>>;
    /// Content of one file.
    ///
    /// # Errors
    /// Whatever the file says.
    fn read(&mut self, name: &str) -> io::Result<Bytes>;
    /// Makes a file with this content, on disk together with its name, and takes it as the one to append to.
    ///
    /// # Errors
    /// Whatever the folder says. The file may exist all the same, and appends go where they went before.
    fn create(&mut self, name: &str, content: &[u8]) -> io::Result<()>;
    /// Writes behind the end of the file last made. What an error leaves behind is cut off by
    /// [`truncate`](Self::truncate).
    ///
    /// # Errors
    /// A full or failing disk.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Waits until what was appended is on disk.
    ///
    /// # Errors
    /// A failing disk. What was written since the last success may be lost, and asking again proves nothing.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file last made to this length.
    ///
    /// # Errors
    /// Whatever the file says.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
    /// Deletes a file, which may be the one last made: nothing is appended then until there is another.
    ///
    /// # Errors
    /// Whatever the folder says.
    fn remove(&mut self, name: &str) -> io::Result<()>;
    /// Keeps some room back, in which outcomes can be written when a disk is full; asked for before each message. By
    /// default there is none.
    ///
    /// # Errors
    /// A full disk: no message is to be written.
    fn reserve(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Gives that room free; false where there was none.
    fn release(&mut self) -> bool {
        false
    }
}
