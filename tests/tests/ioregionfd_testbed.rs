//! A host whose KVM has ioregionfd (`protocol/kvm-ioregionfd`): the same checks as in `ioregionfd`, where Outrigger stands in, and the
//! proof that it does not here.

use std::path::Path;

use outrigger_tests::testbed::Testbed;
use outrigger_tests::{binaries, disk, payload};
use tempfile::TempDir;

fn testbed() -> Testbed {
    let faulty = Path::new(env!("CARGO_BIN_EXE_faulty-registers"));
    let strip = |program: &Path, testbed: &Testbed| {
        let name = program.file_name().expect("it is a file");
        let copy = testbed.directory().join(name);
        binaries::strip(program, &copy);
        (copy, format!("/bin/{}", name.display()))
    };
    let mut testbed = Testbed::new().kernel("ioregionfd").cpus(2).file(payload::path(), "/guest/payload");
    let ports = Path::new(env!("CARGO_BIN_EXE_port-registers"));
    let rounds = Path::new(env!("CARGO_BIN_EXE_fault-rounds"));
    for program in [binaries::example("paths").as_path(), faulty, ports, rounds] {
        let (copy, to) = strip(program, &testbed);
        testbed = testbed.file(copy, &to);
    }
    testbed
}

/// Shell functions: `serve COMMAND SOCKET ARGUMENT…` starts a device process, $server. `column NAME ROW COLUMN` is a number of --stats.
const SHELL: &str = r#"
serve() {
  rm -f $2
  "$@" & server=$!
  for try in $(seq 50); do [ -S $2 ] && return; sleep 0.2; done
  fail "$* does not listen"
}
column() { grep -- "$2" /tmp/$1.err | awk "{ print \$(NF - 3 + $3) }"; }
guest="--kernel /guest/payload --memory 64M --stats --show-devices"
"#;

#[test]
#[ignore = "builds a kernel: scripts/test --kernel"]
fn kvm_asks_the_device_and_the_vmm_sees_nothing_of_it() {
    let script = r#"
serve paths /tmp/paths.sock
for paths in message mapped,ioeventfd,ioregionfd,stand-in,message; do
  boot $paths 0 $guest --device socket=/tmp/paths.sock --paths $paths --cmdline checks=paths
  has $paths 'payload: passed'
done
kill $server
best=mapped,ioeventfd,ioregionfd,stand-in,message
[ $(grep -c 'ioregionfd   KVM asks the device process' /tmp/$best.err) = 6 ] || fail 'not all ioregionfds are in KVM'
[ $(column $best '01.0 BAR0 ' 2) = 0 ] || fail 'the VMM stood in'
# Each of the six pages is accessed some 200 times.
[ $(($(column message '01.0 BAR0 ' 1) - $(column $best '01.0 BAR0 ' 1))) -gt 1000 ] || fail 'messages instead'
[ $(($(column message 'vCPU 0, to the VMM' 2) - $(column $best 'vCPU 0, to the VMM' 2))) -gt 1000 ] || fail 'the VMM saw exits'
# KVM counts what it had the device do: with the exits to the VMM, that is every access of the guest. (One instruction, which is
# what KVM's exits count, can make two.)
by_kvm=$(column $best 'vCPU 0, by ioregionfd' 1)
[ $by_kvm -gt 1000 ] || fail 'KVM did not ask'
served=$((by_kvm + $(column $best 'vCPU 0, to the VMM' 2)))
[ $served -ge $(column $best 'vCPU 0, to KVM' 2) ] || fail 'exits that nobody served'
[ $served -le $(column message 'vCPU 0, to the VMM' 2) ] || fail 'accesses that the guest did not make'
[ $(column message 'vCPU 0, by ioregionfd' 1) = 0 ] || fail 'KVM asked, though --paths forbids it'

serve port-registers /tmp/ports.sock
for paths in message ioregionfd,message; do
  boot ports-$paths 0 $guest --device socket=/tmp/ports.sock --paths $paths --cmdline checks=ports
  has ports-$paths 'payload: passed'
done
kill $server
[ $(column ports-ioregionfd,message '01.0 BAR0 ' 2) = 0 ] || fail 'the VMM stood in for ports'
[ $(column ports-message '01.0 BAR0 ' 1) -gt $(($(column ports-ioregionfd,message '01.0 BAR0 ' 1) + 10)) ] || fail 'messages for ports'
[ $(column ports-ioregionfd,message 'vCPU 0, by ioregionfd' 1) -gt 10 ] || fail 'KVM did not ask for ports'

boot disk 0 $guest --disk path=/guest/disk --cmdline checks=pci,blk,bar,msix,blk
has disk 'payload: passed'
! grep ':0[12].0 BAR0 ' /tmp/disk.err || fail 'registers of the disk came to the VMM'
[ $(column disk 'vCPU 0, by ioregionfd' 1) -gt 20 ] || fail 'KVM did not ask the disk'
boot linux 0 --kernel /guest/vmlinuz --initrd /guest/io --cpus 2 --memory 256M --cmdline 'console=ttyS0 quiet panic=-1' \
  --disk path=/guest/disk --net tap=orkvm0 --stats
has linux DISK-READ
! grep ':0[12].0 BAR0 ' /tmp/linux.err || fail 'registers came to the VMM'
[ $(($(column linux 'vCPU 0, by ioregionfd' 1) + $(column linux 'vCPU 1, by ioregionfd' 1))) -gt 100 ] || fail 'KVM did not ask'
nothing_left
"#;
    let directory = TempDir::new().expect("there is room for temporary files");
    let image = disk::for_payload(directory.path());
    let testbed = testbed().initramfs("dd if=/dev/vda of=/dev/null bs=64k && echo DISK-READ", "/guest/io");
    testbed.file(image, "/guest/disk").run(&[SHELL, script].concat());
}

#[test]
#[ignore = "builds a kernel: scripts/test --kernel"]
fn a_device_that_breaks_or_hangs_is_cut_off_and_named_once() {
    let script = r#"
named_once() {
  has $1 'payload: passed'
  [ $(grep -c "socket=$2): its device process" /tmp/$1.err) = 1 ] || fail "$1: the device is not named once"
}
for fault in hangs-up answers-twice answers-short never-answers; do
  serve faulty-registers /tmp/faulty.sock $fault
  boot $fault 6 $guest --device socket=/tmp/faulty.sock --cmdline checks=gone
  named_once $fault /tmp/faulty.sock
  kill $server
done

# start NAME: a guest that reads a register of the device until that is gone, $vmm.
start() {
  serve paths /tmp/paths.sock
  outrigger run $guest --device socket=/tmp/paths.sock --cmdline checks=gone < /dev/null > /tmp/$1.out 2> /tmp/$1.err & vmm=$!
  for try in $(seq 100); do grep -q ready /tmp/$1.out && return; sleep 0.2; done
  fail "$1 does not run"
}
start killed
kill -9 $server
wait $vmm; [ $? = 6 ] || fail "killed: status"
named_once killed /tmp/paths.sock
start stopped
kill -STOP $server
wait $vmm; [ $? = 6 ] || fail "stopped: status"
named_once stopped /tmp/paths.sock
kill -9 $server
# The vCPU waits in KVM for a device that does not answer; a signal ends the run long before KVM gives up.
start ended
kill -STOP $server
sleep 1
before=$(cut -d. -f1 /proc/uptime)
kill -TERM $vmm
wait $vmm; [ $? = 143 ] || fail "ended: status"
[ $(($(cut -d. -f1 /proc/uptime) - before)) -lt 5 ] || fail 'ended late'
kill -9 $server
nothing_left
"#;
    testbed().run(&[SHELL, script].concat());
}

/// Every fault at random moments, and the host's kernel has nothing to say about any of it.
#[test]
#[ignore = "builds a kernel: scripts/test --kernel"]
fn rounds_of_every_fault_end_as_documented_and_the_host_is_unharmed() {
    let script = r#"
mkdir -p /tmp
dmesg -c > /dev/null
fault-rounds --outrigger /bin/outrigger --payload /guest/payload --paths /bin/paths --faulty /bin/faulty-registers \
  --rounds 24 --at-once 40 --busy 2 || fail 'rounds'
nothing_left
splat='WARNING|BUG|Oops|KASAN|UBSAN|possible recursive locking|circular locking|suspicious RCU|blocked for more than|soft lockup|rcu.*stall|refcount_t|general protection|unregister_netdevice'
dmesg | grep -E "$splat" && { dmesg | tail -n 100; fail 'a splat'; }
dmesg | wc -l
# The log works, and a splat would be found.
echo 'fault-rounds: WARNING: this is how one looks' > /dev/kmsg
dmesg | grep -qE "$splat" || fail 'a splat would not be found'
"#;
    testbed().minutes(15).run(&[SHELL, script].concat());
}
