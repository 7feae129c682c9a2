//! Capture files, for replaying what was seen elsewhere and for looking at what was seen here.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read as _, Seek as _},
    path::Path,
    time::Duration,
};

use pcap_file::{
    DataLink, PcapError,
    pcap::{PcapPacket, PcapReader, PcapWriter},
    pcapng::{Block, PcapNgReader},
};

use crate::{Error, Host, Result};

/// Writes Ethernet frames to a pcap file, one millisecond apart.
pub fn write<F: AsRef<[u8]>>(path: impl AsRef<Path>, frames: impl IntoIterator<Item = F>) -> Result<()> {
    let path = path.as_ref();
    let write = || {
        let file = BufWriter::new(File::create(path).map_err(PcapError::IoError)?);
        let mut writer = PcapWriter::new(file)?;
        for (number, frame) in (0_u64..).zip(frames) {
            let frame = frame.as_ref();
            let packet = PcapPacket::new(Duration::from_millis(number), frame.len() as u32, frame);
            writer.write_packet(&packet)?;
        }
        Ok(())
    };
    write().map_err(|error| explain(path, &error))
}

/// The Ethernet frames of a pcap or pcapng file.
pub fn read(path: impl AsRef<Path>) -> Result<Vec<Vec<u8>>> {
    let path = path.as_ref();
    let read = || {
        let mut file = File::open(path).map_err(PcapError::IoError)?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic).map_err(|_| PcapError::IncompleteBuffer)?;
        file.rewind().map_err(PcapError::IoError)?;
        let file = BufReader::new(file);
        // The type of a section header block, which reads the same in either byte order.
        if magic == [0x0a, 0x0d, 0x0d, 0x0a] {
            read_pcapng(file)
        } else {
            read_pcap(file)
        }
    };
    read().map_err(|error| explain(path, &error))
}

/// Sends the frames of a capture file out of a host's interface, one after the other, without the pauses between them;
/// returns how many.
pub fn replay(host: &Host, interface: &str, path: impl AsRef<Path>) -> Result<u64> {
    host.injector(interface)?.send_all(read(path)?)
}

fn read_pcap(file: BufReader<File>) -> Result<Vec<Vec<u8>>, PcapError> {
    let mut reader = PcapReader::new(file)?;
    require_ethernet(reader.header().datalink)?;
    let mut frames = Vec::new();
    while let Some(packet) = reader.next_packet() {
        frames.push(packet?.data.into_owned());
    }
    Ok(frames)
}

fn read_pcapng(file: BufReader<File>) -> Result<Vec<Vec<u8>>, PcapError> {
    let mut reader = PcapNgReader::new(file)?;
    let mut frames = Vec::new();
    while let Some(block) = reader.next_block() {
        match block? {
            Block::InterfaceDescription(interface) => require_ethernet(interface.linktype)?,
            Block::EnhancedPacket(packet) => frames.push(packet.data.into_owned()),
            _ => {}
        }
    }
    Ok(frames)
}

fn require_ethernet(datalink: DataLink) -> Result<(), PcapError> {
    match datalink {
        DataLink::ETHERNET => Ok(()),
        _ => Err(PcapError::InvalidField("it holds no Ethernet frames")),
    }
}

fn explain(path: &Path, error: &PcapError) -> Error {
    let cause = match error {
        PcapError::IoError(error) => error.to_string(),
        PcapError::IncompleteBuffer => "it ends in the middle of a packet".into(),
        PcapError::InvalidField(what) => (*what).into(),
        other => other.to_string(),
    };
    Error::Pcap {
        path: path.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packets;

    #[test]
    fn what_was_written_is_read() {
        let path = std::env::temp_dir().join(format!("testbed-{}.pcap", std::process::id()));
        let frames: Vec<_> = (0..10)
            .map(|seed| packets::random_bytes(seed, 60 + seed as usize * 100))
            .collect();
        write(&path, &frames).unwrap();
        let read = read(&path);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read.unwrap(), frames);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read("/does/not/exist.pcap").unwrap_err().to_string();
        assert_eq!(error, "/does/not/exist.pcap: No such file or directory (os error 2)");
    }
}
