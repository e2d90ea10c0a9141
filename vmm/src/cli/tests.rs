//! Every mistake and its exact line; every option and what it comes to.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use outrigger_process::seal::Sandbox;
use proptest::prelude::*;

use super::*;
use crate::config::{Budget, Dma, PathName, Restart, ServerUser, Source};
use crate::ctl;

fn parse_words(words: &str) -> Result<Request, UsageError> {
    parse(words.split_whitespace())
}

/// The configuration that `outrigger run --kernel k` and `more` words come to.
fn config(more: &[&str]) -> Config {
    match parse(["outrigger", "run", "--kernel", "k"].iter().chain(more)) {
        Ok(Request::Run(config)) => *config,
        other => panic!("{more:?}: {other:?}"),
    }
}

/// The line that `outrigger run --kernel k` and `more` words are refused with.
fn line(more: &[&str]) -> String {
    match parse(["outrigger", "run", "--kernel", "k"].iter().chain(more)) {
        Err(error) => error.to_string(),
        Ok(request) => panic!("{more:?}: {request:?}"),
    }
}

#[test]
fn values_that_cannot_be_used_are_refused_in_one_exact_line() {
    let size = "write it like 512M or 2G (units K, M, G, T; 1K is 1024 bytes)";
    let table: &[(&str, &str, &str)] = &[
        ("--cpus", "0", "must be between 1 and 64"),
        ("--cpus", "65", "must be between 1 and 64"),
        ("--cpus", "-1", "must be between 1 and 64"),
        ("--cpus", "two", "must be between 1 and 64"),
        ("--cpus", "boot=2", "must be between 1 and 64"),
        ("--memory", "1M", "must be between 32M and 1T"),
        ("--memory", "2T", "must be between 32M and 1T"),
        ("--memory", "512", "must be between 32M and 1T; did you mean 512M?"),
        ("--memory", "7", "must be between 32M and 1T"),
        ("--memory", "lots", &format!("'lots' is not a size; {size}")),
        ("--memory", "512MB", &format!("'512MB' is not a size; {size}")),
        ("--memory", "536870913", "must be a multiple of 4K"),
        ("--memory", "1025K,hugepages=on", "must be between 32M and 1T"),
        ("--memory", "33M,hugepages=on", "must be a multiple of 2M with hugepages=on"),
        ("--memory", "1G,hugepages=yes", "hugepages: must be on or off, not 'yes'"),
        ("--memory", "1G,shared=on", "unknown key 'shared'; it takes size and hugepages"),
        ("--memory", "hugepages=on", "needs size=SIZE"),
        ("--disk", "path=x,dma=copied", "dma: must be shared or messages, not 'copied'"),
        ("--net", "tap=t,dma=", "dma: is empty"),
        ("--net", "dma=shared,tap=t,dma=shared", "key 'dma' is given twice"),
        (
            "--disk",
            "path=x,restart=5",
            "restart: must be off or N/SECONDS like 5/60s, N from 1 to 10000, SECONDS from 1 to 86400, not '5'",
        ),
        ("--disk", "path=x,restart=", "restart: is empty"),
        (
            "--net",
            "tap=t,deadline=50ms",
            "deadline: must be a time between 100ms and 600s, like 10s or 500ms, not '50ms'",
        ),
        ("--device", "socket=s,deadline=1,deadline=2", "key 'deadline' is given twice"),
        (
            "--device",
            "program=p,restart=on",
            "restart: must be off or N/SECONDS like 5/60s, N from 1 to 10000, SECONDS from 1 to 86400, not 'on'",
        ),
        ("--device", "/run/x.sock", "needs program=PATH or socket=PATH"),
        ("--device", "", "needs program=PATH or socket=PATH"),
        ("--device", "program=", "program: is empty"),
        ("--device", "program=p,socket=s", "takes program=PATH or socket=PATH, not both"),
        (
            "--device",
            "program=p,user=any",
            "user: goes with socket=PATH only; a program that Outrigger starts runs as the same user",
        ),
        ("--device", "socket=s,user=no such user", "user: there is no user 'no such user'"),
        ("--device", "socket=s,user=-1", "user: there is no user '-1'"),
        (
            "--device",
            "socket=s,queues=1",
            "unknown key 'queues'; it takes socket, user, dma, restart, deadline and p2p",
        ),
        ("--vfio", "01:00.0,p2p=yes", "p2p: must be on or off, not 'yes'"),
        ("--device", "socket=", "socket: is empty"),
        ("--device", "path=/x", "needs program=PATH or socket=PATH"),
        ("--paths", "", "is empty"),
        ("--paths", "mapped", "message cannot be left out, for some accesses have no other path; write mapped,message"),
        ("--paths", "messages", "'messages' is no path; they are mapped, ioeventfd, ioregionfd, stand-in and message"),
        ("--paths", "mapped,,message", "'' is no path; they are mapped, ioeventfd, ioregionfd, stand-in and message"),
        ("--nested", "yes", "must be on or off, not 'yes'"),
        ("--console", "tty", "must be stdio, file=PATH or none"),
        ("--console", "file", "must be stdio, file=PATH or none"),
        ("--console", "file=", "file: is empty"),
    ];
    for (flag, value, problem) in table {
        assert_eq!(line(&[flag, value]), format!("{flag} {value}: {problem}"));
    }
}

#[test]
fn mistakes_of_form_are_refused_in_one_exact_line() {
    let table = [
        ("outrigger", "no command given: try 'outrigger run --help'"),
        (
            "outrigger boot",
            "boot: unknown command; there are 'outrigger run', 'outrigger ctl' and 'outrigger vfio', see 'outrigger --help'",
        ),
        ("outrigger --kernel k", "--kernel: unknown option; see 'outrigger run --help'"),
        ("outrigger run", "--kernel: is missing; see 'outrigger run --help'"),
        ("outrigger run --kernel", "--kernel: needs a value; see 'outrigger run --help'"),
        ("outrigger run --kernel --cpus 2", "--kernel: needs a value; see 'outrigger run --help'"),
        ("outrigger run --kernel=", "--kernel: needs a value; see 'outrigger run --help'"),
        ("outrigger run --kernel k --kernel l", "--kernel: is given twice"),
        ("outrigger run --kernel k --show-devices=yes", "--show-devices: takes no value"),
        ("outrigger run --kernel k --frob", "--frob: unknown option; see 'outrigger run --help'"),
        ("outrigger run --kernel k --memry 1G", "--memry: unknown option; did you mean --memory?"),
        ("outrigger run --kernel k -m 1G", "-m: unknown option; see 'outrigger run --help'"),
        ("outrigger run --kernel k bzImage", "bzImage: unexpected argument; see 'outrigger run --help'"),
        ("outrigger run --kernel k --control", "--control: needs a value; see 'outrigger run --help'"),
        ("outrigger ctl", "no command given: try 'outrigger ctl --help'"),
        ("outrigger ctl s", "no command given: try 'outrigger ctl --help'"),
        ("outrigger ctl s pause", "pause: unknown command; see 'outrigger ctl --help'"),
        ("outrigger ctl s stop now", "now: unexpected argument; see 'outrigger ctl --help'"),
        ("outrigger ctl s restart", "SLOT: is missing; see 'outrigger ctl --help'"),
        (
            "outrigger ctl s restart 1",
            "1: is no slot; the places of devices are written 00:01.0 to 00:1f.0, see 'outrigger ctl PATH status'",
        ),
        ("outrigger ctl s replace 00:01.0 --program", "--program: needs a value; see 'outrigger ctl --help'"),
        ("outrigger vfio", "COMMAND: is missing; see 'outrigger vfio --help'"),
        ("outrigger ctl s status --json", "--json: unknown option; see 'outrigger ctl --help'"),
    ];
    for (words, line) in table {
        assert_eq!(parse_words(words).unwrap_err().to_string(), line, "{words}");
    }
}

#[test]
fn a_line_break_in_a_value_does_not_break_the_line() {
    assert_eq!(line(&["--cpus", "1\n2\x1b[31m"]), r"--cpus 1\n2\u{1b}[31m: must be between 1 and 64");
}

#[test]
fn text_that_is_not_utf8_is_refused_where_text_is_needed() {
    let bad = OsStr::from_bytes(b"path=\xff");
    let words = [OsStr::new("outrigger"), OsStr::new("run"), OsStr::new("--kernel"), OsStr::new("k")];
    let error = parse(words.into_iter().chain([OsStr::new("--disk"), bad])).unwrap_err();
    assert!(error.to_string().ends_with("is not UTF-8 text"), "{error}");

    let kernel = parse([OsStr::new("outrigger"), OsStr::new("run"), OsStr::new("--kernel"), bad]).unwrap();
    assert!(matches!(kernel, Request::Run(config) if config.kernel.as_os_str() == bad));
}

#[test]
fn a_long_command_line_is_refused_without_repeating_it() {
    assert_eq!(line(&["--cmdline", &"x".repeat(2048)]), "--cmdline: is 2048 bytes long, at most 2047 are possible");
    assert_eq!(config(&["--cmdline", &"x".repeat(2047)]).cmdline.len(), 2047);
}

#[test]
fn a_kernel_that_is_told_to_use_no_apic_needs_the_pit() {
    let needs_pit = |cmdline| config(&["--cmdline", cmdline]).needs_pit();
    assert!(!needs_pit("console=ttyS0 panic=-1 init=/noapic acpi=offline"));
    for cmdline in ["noapic", "console=ttyS0 nolapic", "acpi=off reboot=k"] {
        assert!(needs_pit(cmdline), "{cmdline}");
    }
}

#[test]
fn a_socket_path_fits_sockaddr_un() {
    let path = "x".repeat(108);
    let value = format!("socket={path}");
    assert_eq!(
        line(&["--device", &value]),
        format!("--device {value}: socket: is 108 bytes long, at most 107 are possible")
    );
}

#[test]
fn a_control_socket_has_such_a_path_too() {
    let path = "x".repeat(108);
    let problem = "is 108 bytes long, at most 107 are possible";
    assert_eq!(line(&["--control", &path]), format!("--control {path}: {problem}"));
    let of_ctl = |path: &str| parse(["outrigger", "ctl", path, "status"]).map_err(|error| error.to_string());
    assert_eq!(of_ctl(&path), Err(format!("{path}: {problem}")));
    assert_eq!(config(&["--control", "vm.sock"]).control, Some("vm.sock".into()));
    let call = |command| Request::Ctl(Call { path: "vm.sock".into(), command });
    assert_eq!(of_ctl("vm.sock"), Ok(call(ctl::Command::Status)));
    let (slot, program) = (crate::pci::Slot(31), Some("./blk".into()));
    let replace = parse_words("outrigger ctl vm.sock replace 0000:00:1F.0 --program ./blk").unwrap();
    assert_eq!(replace, call(ctl::Command::Replace(slot, program)));
}

#[test]
fn only_the_kernel_is_needed() {
    let expected = Config {
        kernel: "k".into(),
        initrd: None,
        cmdline: "console=ttyS0 panic=-1".into(),
        cpus: 1,
        memory: MemoryConfig { size: 512 << 20, hugepages: false },
        pci_devices: Vec::new(),
        paths: AllowedPaths::default(),
        console: ConsoleConfig::Stdio,
        control: None,
        programs: None,
        nested: false,
        show_devices: false,
        stats: false,
    };
    assert_eq!(config(&[]), expected);
}

#[test]
fn every_option_is_understood() {
    let words = "--initrd i --cmdline -quiet --cpus 64 --memory 2G,hugepages=on --console none --nested on --show-devices --stats --programs d --paths message,mapped";
    let config = config(&words.split(' ').collect::<Vec<_>>());
    assert_eq!(config.initrd.as_deref(), Some(Path::new("i")));
    assert_eq!(config.programs.as_deref(), Some(Path::new("d")));
    assert_eq!((config.cmdline.as_str(), config.cpus), ("-quiet", 64));
    assert_eq!(config.memory, MemoryConfig { size: 2 << 30, hugepages: true });
    assert_eq!(
        (config.console, config.nested, config.show_devices, config.stats),
        (ConsoleConfig::None, true, true, true)
    );
    assert_eq!(config.paths, AllowedPaths::only(&[PathName::Mapped]));
}

#[test]
fn restarts_and_deadlines_are_outriggers_own_and_not_passed_on() {
    let words = "--disk path=x,restart=3/10s,deadline=500ms --net restart=off,tap=t --device socket=/s,restart=1/2";
    let config = config(&words.split_whitespace().collect::<Vec<_>>());
    let within = |restarts, seconds| Restart::Within(Budget { restarts, window: Duration::from_secs(seconds) });
    let read = config.pci_devices.iter().map(|device| (device.restart, device.deadline)).collect::<Vec<_>>();
    let ten = Duration::from_secs(10);
    assert_eq!(read, [(within(3, 10), Duration::from_millis(500)), (Restart::Off, ten), (within(1, 2), ten)]);
    let Source::Program { options, .. } = &config.pci_devices[0].source else { panic!("a disk has a program") };
    assert_eq!(options, "path=x");
}

#[test]
fn the_sandbox_is_told_to_programs_that_outrigger_starts_and_not_passed_on() {
    let words = "--disk path=x,sandbox=require --net sandbox=off,tap=t --device program=./p,sandbox=on --disk path=y";
    let read: Vec<_> = config(&words.split_whitespace().collect::<Vec<_>>()).pci_devices.into_iter().collect();
    let read = read.into_iter().map(|device| match device.source {
        Source::Program { options, sandbox, .. } => (options, sandbox),
        Source::Socket { .. } => panic!("all have a program"),
    });
    let expected = [("path=x", Sandbox::Require), ("tap=t", Sandbox::Off), ("", Sandbox::On), ("path=y", Sandbox::On)];
    assert!(read.eq(expected.map(|(options, sandbox)| (options.to_owned(), sandbox))));
    let error =
        |words: &str| parse(["outrigger", "run", "--kernel", "k"].into_iter().chain(words.split(' '))).unwrap_err();
    assert_eq!(
        error("--disk path=x,sandbox=no").to_string(),
        "--disk path=x,sandbox=no: sandbox: must be on, require or off"
    );
    assert_eq!(
        error("--device socket=/s,sandbox=on").to_string(),
        "--device socket=/s,sandbox=on: sandbox: goes with program=PATH only; Outrigger does not start the server at a socket"
    );
}

#[test]
fn dma_to_other_devices_is_not_to_be_had_where_the_vmm_maps() {
    let words = ["outrigger", "run", "--kernel", "k", "--vfio", "01:00.0,dma=vmm,p2p=on"];
    let error = parse(words).unwrap_err().to_string();
    assert_eq!(error, "--vfio 01:00.0,dma=vmm,p2p=on: p2p=on: cannot be had with dma=vmm, which maps guest RAM only");
}

#[test]
fn the_program_of_a_physical_device_reads_its_dma_and_gets_the_descriptors_that_are_named_for_it() {
    let words = "--vfio 01:00.0,dma=vmm,fd=7,iommufd=8,restart=off --vfio 02:00.0,dma=messages,fd=x --disk path=x,fd=9";
    let config = config(&words.split_whitespace().collect::<Vec<_>>());
    let read: Vec<_> = config.pci_devices.iter().map(|device| (&device.source, device.dma)).collect();
    let program = |program: &str, options: &str, inherited: &[i32]| Source::Program {
        program: program.into(),
        options: options.into(),
        inherited: inherited.into(),
        sandbox: Sandbox::On,
    };
    let expected = [
        (&program("outrigger-vfio", "01:00.0,dma=vmm,fd=7,iommufd=8", &[7, 8]), Dma::Vmm),
        (&program("outrigger-vfio", "02:00.0,dma=messages,fd=x", &[]), Dma::Shared),
        (&program("outrigger-blk", "path=x,fd=9", &[]), Dma::Shared),
    ];
    assert_eq!(read, expected);
}

#[test]
fn devices_keep_the_order_of_the_command_line() {
    let words = "--net tap=a,mtu=9000 --disk path=x,serial=S --device socket=/s,dma=messages,user=0 --net dma=shared,tap=b \
                 --device program=./p,path=y,,z=1,dma=messages,color= --disk anything --device socket=/t,user=any --device program=q";
    let config = config(&words.split_whitespace().collect::<Vec<_>>());
    let program = |program: &str, options: &str| Source::Program {
        program: program.into(),
        options: options.into(),
        inherited: Vec::new(),
        sandbox: Sandbox::On,
    };
    let socket = |path: &str, server| Source::Socket { path: path.into(), server };
    let expected = [
        ("--net tap=a,mtu=9000", program("outrigger-net", "tap=a,mtu=9000"), Dma::Shared),
        ("--disk path=x,serial=S", program("outrigger-blk", "path=x,serial=S"), Dma::Shared),
        (
            "--device socket=/s,dma=messages,user=0",
            socket("/s", ServerUser::Only(nix::unistd::Uid::from_raw(0))),
            Dma::Messages,
        ),
        ("--net dma=shared,tap=b", program("outrigger-net", "tap=b"), Dma::Shared),
        ("--device program=./p,path=y,,z=1,dma=messages,color=", program("./p", "path=y,,z=1,color="), Dma::Messages),
        ("--disk anything", program("outrigger-blk", "anything"), Dma::Shared),
        ("--device socket=/t,user=any", socket("/t", ServerUser::Any), Dma::Shared),
        ("--device program=q", program("q", ""), Dma::Shared),
    ];
    let expected = expected.map(|(label, source, dma)| {
        let restart = match source {
            Source::Program { .. } => Restart::IfUnnoticed,
            Source::Socket { .. } => Restart::Off,
        };
        DeviceConfig { label: label.into(), source, dma, restart, deadline: Duration::from_secs(10), p2p: false }
    });
    assert_eq!(config.pci_devices, expected);
}

#[test]
fn the_bus_has_room_for_31_devices() {
    let values: Vec<String> = (0..32).map(|index| format!("--disk=path=d{index}")).collect();
    let mut words: Vec<&str> = values.iter().map(String::as_str).collect();
    assert_eq!(line(&words), "--disk, --net, --vfio, --device: 32 PCI devices given, the bus has room for 31");
    words.pop();
    assert_eq!(config(&words).pci_devices.len(), 31);
}

#[test]
fn a_socket_serves_one_device() {
    assert_eq!(
        line(&["--device", "socket=s", "--device", "dma=messages,socket=s"]),
        "--device dma=messages,socket=s: is given twice; each device needs its own"
    );
}

#[test]
fn console_paths_may_hold_commas() {
    assert_eq!(config(&["--console", "file=a,b"]).console, ConsoleConfig::File("a,b".into()));
}

#[test]
fn help_and_version_are_printed_not_refused() {
    let text = |words| match parse_words(words) {
        Ok(Request::Print(text)) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(text("outrigger --version"), concat!("outrigger ", env!("CARGO_PKG_VERSION"), "\n"));
    let help = text("outrigger run --help");
    for word in [
        "Examples:",
        "Exit status:",
        "--disk",
        "units K, M, G, T",
        "Ctrl-A x",
        "queues",
        "32M to 1T",
        "program=outrigger-net",
        "user ",
    ] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    assert!(help.lines().all(|line| line.len() <= 120), "{help}");
    assert!(text("outrigger --help").contains("outrigger run --kernel"));
    let help = text("outrigger ctl --help");
    for word in ["Examples:", "Exit status:", "status", "stop", "restart", "replace", "--program", "curl"] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    assert!(help.lines().all(|line| line.len() <= 120), "{help}");
    assert!(text("outrigger --help").contains("vfio"));
}

#[test]
fn words_behind_vfio_are_passed_on_unread() {
    for words in ["list", "bind 0000:01:00.0", "--help", "unbind x --frob -- run"] {
        let expected = words.split(' ').map(OsString::from).collect();
        assert_eq!(parse_words(&format!("outrigger vfio {words}")).unwrap(), Request::Vfio(expected), "{words}");
    }
}

proptest! {
    #[test]
    fn any_words_end_in_a_config_or_one_line(words in prop::collection::vec("(--(kernel|cpus|memory|disk|net)|[ -~]{0,12})", 0..6)) {
        let words = ["outrigger".to_owned(), "run".to_owned()].into_iter().chain(words);
        if let Err(error) = parse(words) {
            prop_assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}
