//! KVM knows of a physical device before it is opened, and forgets it in whatever way it goes: seen by probes in the host's kernel.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use nix::errno::Errno;
use outrigger_protocol::server::{Device, Interrupts, Irq, Memory, Options, Region, Unopened, serve_unopened};
use outrigger_protocol::wire::VfioTerms;
use outrigger_tests::outrigger::{LIMIT, with_payload};
use outrigger_tests::physical::{self, EDU};
use outrigger_tests::process::run;
use tempfile::TempDir;

#[test]
fn kvm_knows_of_a_device_for_as_long_as_it_is_open() {
    let script = r#"
outrigger vfio bind EDU > /dev/null || fail bind
mount -t tracefs none /sys/kernel/tracing
tracing=/sys/kernel/tracing
# KVM tells VFIO of itself, or that it has forgotten the file; a device is opened; the last descriptor of it is closed.
echo 'p:tie vfio_file_set_kvm kvm=%si' > $tracing/kprobe_events || fail 'no probes'
echo 'p:opened vfio_pci_core_enable' >> $tracing/kprobe_events
echo 'p:closed vfio_pci_core_close_device' >> $tracing/kprobe_events
echo 1 > $tracing/events/kprobes/enable
# order NAME: what happened since it was asked last, sorted by time, is in /tmp/NAME.order on one line.
order() {
  grep -v '^#' $tracing/trace > /tmp/$1.trace
  echo > $tracing/trace
  cat /tmp/$1.trace
  sed -nE 's/.*: (tie|opened|closed): .*kvm=0x0$/forgotten/p; t; s/.*: (tie|opened|closed): .*/\1/p' /tmp/$1.trace | tr '\n' ' ' > /tmp/$1.order
}
edu() { name=$1 checks=$2; shift 2; start $name --kernel /guest/payload --memory 64M --vfio EDU,restart=off --cmdline checks=$checks; }
closed() { for try in $(seq 60); do grep -q closed $tracing/trace && return; sleep 0.05; done; fail 'the device stays open'; }

# The eventfd by which INTx is unmasked is connected once, and no message unmasks: KVM signals the eventfd.
echo 'p:told vfio_pci_set_intx_unmask' >> $tracing/kprobe_events
echo 'p:unmasked vfio_pci_intx_unmask_handler' >> $tracing/kprobe_events
echo 1 > $tracing/events/kprobes/enable
edu pin edu-pin
wait $vmm || fail "$(cat /tmp/pin.out)"
told=$(grep -c ': told:' $tracing/trace) unmasked=$(grep -c ': unmasked:' $tracing/trace)
echo "INTx: unmasked $unmasked times, by $told orders"
[ "$told" = 1 ] && [ "$unmasked" -ge 5 ] || fail "INTx was unmasked $unmasked times, by $told orders"
order pin

edu whole edu-message
wait $vmm || fail 'the payload fails'
order whole
[ "$(cat /tmp/whole.order)" = 'tie opened closed forgotten ' ] || fail "$(cat /tmp/whole.order)"

edu first edu-pin,spin
first=$vmm
see first edu-dma-copied
kill -9 $(pidof outrigger-vfio)
see first 'was killed by SIGKILL; from now on the guest reads all-ones'
closed
order killed
case $(cat /tmp/killed.order) in 'tie opened forgotten closed ' | 'tie opened closed forgotten ') ;; *) fail "$(cat /tmp/killed.order)" ;; esac
# What the process had mapped for the device is gone, although the guest that has the memory is still there: DMA to it faults in the
# IOMMU. The host itself starts that by the device's registers.
dmesg | grep -q 'DMAR:.*\[DMA Write.*03:00.0.*fault addr' && fail 'DMA has faulted before'
echo on > /sys/bus/pci/devices/EDU/power/control
printf '\006\000' | dd of=/sys/bus/pci/devices/EDU/config bs=2 seek=2 conv=notrunc 2> /dev/null
base=$(head -n 1 /sys/bus/pci/devices/EDU/resource | cut -d' ' -f1)
[ "$(devmem $((base)) 32)" = 0x010000ED ] || fail "the device is not there: $(devmem $((base)) 32)"
# From its own memory to the first of the guest's, 64 bytes.
for register in '0x80 0x40000' '0x88 0x100000' '0x90 64' '0x98 3'; do devmem $((base + ${register% *})) 64 $((${register#* })); done
for try in $(seq 600); do dmesg | grep 'DMAR:.*\[DMA Write.*03:00.0.*fault addr 0x100000' && break; sleep 0.1; done
[ $try -lt 600 ] || { dmesg | tail -n 20; fail 'DMA to memory of the guest does not fault'; }
kill -0 $first || fail 'the guest is gone'
printf '\000\000' | dd of=/sys/bus/pci/devices/EDU/config bs=2 seek=2 conv=notrunc 2> /dev/null
# It can be had by another guest while the first one still runs.
edu second edu-pin
wait $vmm || fail "$(cat /tmp/second.out)"
kill $first
order second

edu third edu-pin,spin
see third edu-dma-copied
before=$(cut -d' ' -f1 /proc/uptime)
kill -9 $vmm
group=/dev/vfio/$(basename $(readlink /sys/bus/pci/devices/EDU/iommu_group))
until ( : 3<> $group ) 2> /dev/null; do sleep 0.01; done
after=$(cut -d' ' -f1 /proc/uptime)
echo "$before $after" | awk '{ exit !($2 - $1 < 1) }' || fail "it could be opened again only at $after, not at $before"
order third
grep -q forgotten /tmp/third.order && grep -q closed /tmp/third.order || fail "$(cat /tmp/third.order)"
edu fourth edu-pin,edu-message
wait $vmm || fail "$(cat /tmp/fourth.out)"
no_splat
nothing_left
"#;
    physical::testbed().run(&[physical::SHELL, &script.replace("EDU", EDU)].concat());
}

/// A device whose file KVM does not take.
struct Untied(File);

/// Never opened.
struct Nothing;

impl Unopened for Untied {
    type Device = Nothing;

    fn file(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn open(&mut self, _: VfioTerms) -> Result<Nothing, Errno> {
        Ok(Nothing)
    }
}

impl Device for Nothing {
    fn regions(&self) -> &[Region] {
        &[]
    }
    fn irqs(&self) -> &[Irq] {
        &[]
    }
    fn connected(&mut self, _: &Arc<Interrupts>) {}
    fn disconnected(&mut self) {}
    fn reset(&mut self) {}
    fn memory_changed(&mut self, _: &Memory) {}
    fn read(&mut self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }
    fn write(&mut self, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::EINVAL)
    }
}

#[test]
fn a_file_that_kvm_does_not_take_is_one_line() {
    let directory = TempDir::new().expect("there is room for temporary files");
    let path = directory.path().join("untied");
    let listener = UnixListener::bind(&path).expect("the directory is ours");
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("Outrigger connects");
        let _ = serve_unopened(&mut Untied(File::open("/dev/null").expect("it is there")), stream, &Options::default());
    });
    let mut command = with_payload("pci");
    let ended = run(command.arg("--device").arg(format!("socket={}", path.display())), LIMIT);
    ended.expect_code(3);
    let line = "KVM does not take the device's file (KVM_DEV_VFIO_FILE_ADD): Invalid argument (os error 22)\n";
    assert_eq!(ended.stderr, format!("outrigger: --device socket={}: {line}", path.display()));
}
