//! Whole machines on this host's KVM. The programs are a few dozen instructions, which is fine on any KVM, and end by a port, not
//! by HLT.

use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tempfile::NamedTempFile;

use super::*;
use crate::boot::images;
use crate::config::{AllowedPaths, ConsoleConfig, MemoryConfig};

/// The guest's output on COM1.
#[derive(Clone, Default)]
struct Line(Arc<Mutex<Vec<u8>>>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn config(kernel: &Path, cpus: u8) -> Config {
    Config {
        kernel: kernel.to_owned(),
        initrd: None,
        cmdline: "hello".to_owned(),
        cpus,
        memory: MemoryConfig { size: 64 << 20, hugepages: false },
        pci_devices: Vec::new(),
        paths: AllowedPaths::default(),
        console: ConsoleConfig::None,
        control: None,
        programs: None,
        nested: false,
        show_devices: false,
        stats: false,
    }
}

/// Run `kernel` until it ends, five seconds at most; what it wrote to COM1 and how it ended.
fn run(kernel: &[u8], cpus: u8) -> (String, Option<Outcome>) {
    let kernel: NamedTempFile = images::file(kernel);
    let (line, control) = (Line::default(), Control::without_thread().unwrap());
    let stop = control.stop.clone();
    let serial = Arc::new(Serial::new(Box::new(line.clone())).unwrap());
    let mut machine = Machine::build(&config(kernel.path(), cpus), &serial, &control).unwrap();
    machine.start().unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while !stop.requested() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    stop.request(Outcome::Failed { report: "too late".to_owned() });
    machine.stop();
    let text = String::from_utf8(line.0.lock().unwrap().clone()).unwrap();
    (text, stop.outcome())
}

/// 32-bit code that writes `value` to `port`.
fn out(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xBA, low, high, 0xB0, value, 0xEE] // mov dx, port; mov al, value; out dx, al
}

const SPIN: [u8; 2] = [0xEB, 0xFE]; // jmp $

#[test]
fn an_elf_kernel_writes_to_the_serial_port_and_powers_off() {
    let program = [out(0x3F8, b'H'), out(0x3F8, b'i'), out(0x605, 0x20), SPIN.to_vec()].concat();
    assert_eq!(run(&images::elf(&program), 1), ("Hi".to_owned(), Some(Outcome::PowerOff)));
}

#[test]
fn a_pvh_kernel_finds_its_command_line_and_acpi_by_the_start_info() {
    let program = [
        // mov esi, [ebx + 24] (command line); mov ecx, 5; cld; mov dx, 0x3F8; rep outsb
        vec![0x8B, 0x73, 24, 0xB9, 5, 0, 0, 0, 0xFC, 0x66, 0xBA, 0xF8, 0x03, 0xF3, 0x6E],
        // mov esi, [ebx + 32] (RSDP); mov ecx, 7; rep outsb
        vec![0x8B, 0x73, 32, 0xB9, 7, 0, 0, 0, 0xF3, 0x6E],
        out(0x605, 0x20),
        SPIN.to_vec(),
    ]
    .concat();
    assert_eq!(run(&images::elf(&program), 1), ("helloRSD PTR".to_owned(), Some(Outcome::PowerOff)));
}

#[test]
fn a_bzimage_starts_in_64_bit_mode_with_the_zero_page() {
    let mut program = vec![0x90; 0x200];
    program.extend([
        // mov eax, [rsi + 0x202] ("HdrS"); mov dx, 0x3F8; out dx, al
        0x8B, 0x86, 0x02, 0x02, 0x00, 0x00, 0x66, 0xBA, 0xF8, 0x03, 0xEE, //
        // mov rax, 0x42_0000_0000; shr rax, 32; out dx, al: 'B' only in 64-bit mode
        0x48, 0xB8, 0, 0, 0, 0, 0x42, 0, 0, 0, 0x48, 0xC1, 0xE8, 32, 0xEE,
    ]);
    program.extend([out(0x606, 1), SPIN.to_vec()].concat());
    assert_eq!(run(&images::bzimage(&program, 0x1000), 1), ("HB".to_owned(), Some(Outcome::Reboot)));
}

#[test]
fn the_keyboard_controllers_reset_is_a_reboot() {
    let program = [out(0x64, 0xFE), SPIN.to_vec()].concat();
    assert_eq!(run(&images::elf(&program), 1).1, Some(Outcome::Reboot));
}

#[test]
fn a_jump_to_the_bios_in_real_mode_is_a_reboot() {
    let program = [
        vec![0x0F, 0x01, 0x15, 27, 0, 0x10, 0], // lgdt [table's address and size]
        vec![0xEA, 14, 0, 0, 0, 8, 0],          // ljmp 8:14, a 16-bit segment at LOAD_ADDRESS
        vec![0x0F, 0x20, 0xC0, 0x24, 0xFE, 0x0F, 0x22, 0xC0], // mov eax, cr0; and al, 0xFE; mov cr0, eax
        vec![0xEA, 0xF0, 0xFF, 0x00, 0xF0],     // ljmp 0xF000:0xFFF0
        vec![15, 0, 33, 0, 0x10, 0],            // at 27: size and address of
        vec![0; 8],                             // at 33: the table
        vec![0xFF, 0xFF, 0x00, 0x00, 0x10, 0x9B, 0x00, 0x00], // 16-bit code, base LOAD_ADDRESS, 64 KiB
    ]
    .concat();
    assert_eq!(run(&images::elf(&program), 1).1, Some(Outcome::Reboot));
}

#[test]
fn a_triple_fault_is_a_crash_with_registers() {
    // mov ebx, 0x12345678; then an undefined instruction without an interrupt table
    let program = [0xBB, 0x78, 0x56, 0x34, 0x12, 0x0F, 0x0B];
    let Some(Outcome::Crash { report }) = run(&images::elf(&program), 1).1 else { panic!("not a crash") };
    assert!(report.starts_with("vCPU 0: triple fault\nrip 0000000000100005"), "{report}");
    assert!(report.contains("rbx 0000000012345678"), "{report}");
}

#[test]
fn unclaimed_ports_and_memory_read_as_ones() {
    let program = [
        // mov dx, 0x5000; in eax, dx; mov dx, 0x3F8; mov ecx, eax; mov eax, [0xD0000000]; and eax, ecx; inc eax; add al, 'A'; out
        vec![0x66, 0xBA, 0x00, 0x50, 0xED, 0x66, 0xBA, 0xF8, 0x03, 0x89, 0xC1],
        vec![0xA1, 0x00, 0x00, 0x00, 0xD0, 0x21, 0xC8, 0x40, 0x04, b'A', 0xEE],
        out(0x605, 0x20),
        SPIN.to_vec(),
    ]
    .concat();
    assert_eq!(run(&images::elf(&program), 1).0, "A");
}

#[test]
fn all_64_vcpus_start_on_an_interrupt_from_the_first() {
    let store =
        |address: u32, value: u32| [&[0xC7, 0x05], &address.to_le_bytes()[..], &value.to_le_bytes()[..]].concat();
    let program = [
        // At 0x8000, for the others, in real mode: lock inc word [0x600]; hlt; jmp to the hlt
        store(0x8000, 0x0006_FFF0),
        store(0x8004, 0xFDEB_F406),
        // To all but self: INIT, then start-up at page 8.
        store(0xFEE0_0300, 0x000C_4500),
        store(0xFEE0_0300, 0x000C_4608),
        // cmp word [0x600], 63; jne back to it
        vec![0x66, 0x81, 0x3D, 0x00, 0x06, 0, 0, 63, 0, 0x75, 0xF5],
        out(0x3F8, b'K'),
        out(0x605, 0x20),
        SPIN.to_vec(),
    ]
    .concat();
    assert_eq!(run(&images::elf(&program), 64), ("K".to_owned(), Some(Outcome::PowerOff)));
}

#[test]
fn vcpus_that_never_exit_are_stopped() {
    let kernel = images::file(&images::elf(&SPIN));
    let control = Control::without_thread().unwrap();
    let stop = control.stop.clone();
    let serial = Arc::new(Serial::new(Box::new(io::sink())).unwrap());
    let mut machine = Machine::build(&config(kernel.path(), 4), &serial, &control).unwrap();
    machine.start().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let started = Instant::now();
    stop.request(Outcome::UserQuit);
    machine.stop();
    assert!(machine.running.is_empty());
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[test]
fn a_machine_that_is_dropped_stops() {
    let kernel = images::file(&images::elf(&SPIN));
    let control = Control::without_thread().unwrap();
    let stop = control.stop.clone();
    let serial = Arc::new(Serial::new(Box::new(io::sink())).unwrap());
    let mut machine = Machine::build(&config(kernel.path(), 2), &serial, &control).unwrap();
    machine.start().unwrap();
    drop(machine);
    assert!(stop.requested());
}

#[test]
fn statuses_tell_whose_fault_it_is() {
    let control = Control::without_thread().unwrap();
    let serial = Arc::new(Serial::new(Box::new(io::sink())).unwrap());
    let text = images::file(b"not a kernel\n");
    let error = Machine::build(&config(text.path(), 1), &serial, &control).map(|_| ()).unwrap_err();
    assert_eq!(error.status(), STATUS_USAGE, "{error}");
    let kernel = images::file(&images::elf(&SPIN));
    let huge = Config { memory: MemoryConfig { size: 1 << 52, hugepages: false }, ..config(kernel.path(), 1) };
    let error = Machine::build(&huge, &serial, &control).map(|_| ()).unwrap_err();
    assert_eq!(error.status(), STATUS_HOST, "{error}");
}
