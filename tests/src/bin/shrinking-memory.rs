//! A device for the payload's check `gone` whose only BAR is memory that the guest is shown, and that the device takes away once
//! the guest uses it: `shrinking-memory SOCKET shortens|toggles|disk|short`.
//!
//! `shortens`: the file is made shorter, for good. `toggles`: shorter and as long as before, without end. `disk` and `short`
//! offer what cannot be mapped, a file on a disk and one that ends before the BAR does; they are honest otherwise, and end
//! the connection when the guest has written.

use std::error::Error;
use std::fs::File;
use std::net::Shutdown;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use outrigger_protocol::pci::{BAR0_REGION, CONFIG_REGION};
use outrigger_protocol::server::{
    ConfigSpace, Device, Interrupts, Irq, Listener, Memory, Options, Region, RegionMapping, serve,
};

const BAR_SIZE: u32 = 0x1_0000;
/// The page that the check writes to first.
const PAGE: u64 = 0x2000;
const PAUSE: Duration = Duration::from_millis(200);

struct Shrinking {
    config: ConfigSpace,
    regions: [Region; 8],
    /// The registers of a device without mapped memory.
    memory: File,
    file_size: u64,
}

impl Device for Shrinking {
    fn regions(&self) -> &[Region] {
        &self.regions
    }
    fn irqs(&self) -> &[Irq] {
        self.config.irqs()
    }
    fn connected(&mut self, _: &Arc<Interrupts>) {}
    fn memory_changed(&mut self, _: &Memory) {}
    fn read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), Errno> {
        data.fill(0);
        if region == CONFIG_REGION {
            self.config.read(usize::try_from(offset).unwrap_or(usize::MAX), data);
        } else if offset < self.file_size {
            self.memory.read_at(data, offset).map_err(|_| Errno::EIO)?;
        }
        Ok(())
    }
    fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), Errno> {
        if region == CONFIG_REGION {
            self.config.write(usize::try_from(offset).unwrap_or(usize::MAX), data);
        } else {
            self.memory.write_at(data, offset).map_err(|_| Errno::EIO)?;
        }
        Ok(())
    }
    fn reset(&mut self) {
        self.config.reset();
    }
    fn disconnected(&mut self) {}
}

/// Waits until the guest has written, and some time.
fn wait_for_guest(memory: &File) {
    let mut byte = [0];
    while memory.read_at(&mut byte, PAGE).is_ok() && byte[0] == 0 {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(PAUSE);
}

fn misbehave(how: &str, memory: &File, connection: &UnixStream) {
    wait_for_guest(memory);
    match how {
        "shortens" => _ = memory.set_len(0),
        "toggles" => while memory.set_len(0).is_ok() && memory.set_len(BAR_SIZE.into()).is_ok() {},
        _ => _ = connection.shutdown(Shutdown::Both),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: shrinking-memory SOCKET shortens|toggles|disk|short";
    let (path, how) = arguments.next().zip(arguments.next()).ok_or(usage)?;
    let memory = match how.as_str() {
        "disk" => tempfile::tempfile_in(std::env::current_exe()?.parent().ok_or("this program is nowhere")?)?,
        "shortens" | "toggles" | "short" => File::from(memfd_create("bar", MFdFlags::MFD_CLOEXEC)?),
        _ => return Err(usage.into()),
    };
    let file_size = match how.as_str() {
        "short" => u64::from(BAR_SIZE) - 1,
        _ => BAR_SIZE.into(),
    };
    memory.set_len(file_size)?;
    let mut regions: [Region; 8] = Default::default();
    let mapping = RegionMapping { fd: memory.try_clone()?.into(), offset: 0, areas: Vec::new() };
    regions[BAR0_REGION as usize] = Region { mapping: Some(mapping), ..Region::messages(BAR_SIZE.into()) };
    regions[CONFIG_REGION as usize] = Region::messages(256);
    let config = ConfigSpace::new(0x1af4, 0x10f1, 0x08_80_00).with_bar(BAR0_REGION, BAR_SIZE);
    let listener = Listener::bind(path.as_ref())?;
    let stream = listener.accept()?;
    let (connection, theirs) = (stream.try_clone()?, memory.try_clone()?);
    thread::spawn(move || misbehave(&how, &theirs, &connection));
    serve(&mut Shrinking { config, regions, memory, file_size }, stream, &Options::default())?;
    Ok(())
}
