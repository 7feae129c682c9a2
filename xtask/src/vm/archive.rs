//! Writes an archive that a kernel unpacks as its first file system: cpio in the format `newc`
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

/// What an entry is; the numbers are the type bits of a file's mode.
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// An archive being written. Folders come before what is in them.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder. Paths have no leading slash.
    pub fn folder(&mut self, path: &str) {
        self.entry(path, FOLDER | 0o755, &[]);
    }

    /// Adds a file with its permissions.
    pub fn file(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.entry(path, FILE | (permissions & 0o7777), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, goal: &str) {
        self.entry(path, LINK | 0o777, goal.as_bytes());
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        let length = |bytes: usize| u32::try_from(bytes).expect("a file of the guest is smaller than 4 GiB");
        let (owner, group, links, modified, device) = (0, 0, 1, 0, 0);
        let fields = [
            self.entries,
            mode,
            owner,
            group,
            links,
            modified,
            length(content.len()),
            device,
            device,
            device,
            device,
            length(path.len() + 1),
            0, // a checksum, which this format does not have
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(path.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads an archive as the kernel does: path, mode and content of each entry.
    fn entries(mut bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut found = Vec::new();
        let whole = bytes.len();
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let digits = std::str::from_utf8(&bytes[6 + 8 * index..][..8]).unwrap();
                usize::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6), field(11));
            let path = std::str::from_utf8(&bytes[110..110 + name_size - 1]).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            if path == "TRAILER!!!" {
                return found;
            }
            let start = (110 + name_size).next_multiple_of(4);
            found.push((
                path.into(),
                u32::try_from(mode).unwrap(),
                bytes[start..start + size].into(),
            ));
            bytes = &bytes[(start + size).next_multiple_of(4)..];
            assert_eq!((whole - bytes.len()) % 4, 0);
        }
    }

    #[test]
    fn what_was_written_is_read_again() {
        let mut archive = Archive::default();
        archive.folder("bin");
        archive.file("bin/a", 0o755, b"12345");
        archive.link("init", "bin/a");
        assert_eq!(
            entries(&archive.finish()),
            [
                ("bin".into(), 0o040_755, vec![]),
                ("bin/a".into(), 0o100_755, b"12345".to_vec()),
                ("init".into(), 0o120_777, b"bin/a".to_vec()),
            ]
        );
    }

    #[test]
    fn entries_differ_in_their_number_or_the_kernel_would_take_them_for_hard_links() {
        let mut archive = Archive::default();
        archive.file("a", 0o644, b"");
        archive.file("b", 0o644, b"");
        let bytes = archive.finish();
        assert_ne!(bytes[6..14], bytes[112 + 6..112 + 14]);
    }
}
