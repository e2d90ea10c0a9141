//! Every mistake and its exact line; every option and what it comes to.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::config::{Dma, MacAddress, PathName};

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
        ("--disk", "path=x,foo=1", "unknown key 'foo'; it takes path, readonly, serial, queues and dma"),
        ("--disk", "path=x,path=y", "key 'path' is given twice"),
        ("--disk", "path=", "path: is empty"),
        ("--disk", "readonly=on", "needs path=FILE"),
        (
            "--disk",
            "root.img",
            "'root.img' is not KEY=VALUE; it takes path, readonly, serial, queues and dma (a comma inside a value is written \
             twice)",
        ),
        (
            "--disk",
            "path=x,",
            "'' is not KEY=VALUE; it takes path, readonly, serial, queues and dma (a comma inside a value is written twice)",
        ),
        ("--disk", "path=x,readonly=true", "readonly: must be on or off, not 'true'"),
        ("--disk", "path=x,readonly=", "readonly: is empty"),
        ("--disk", "path=x,serial=123456789012345678901", "serial: is 21 bytes long, at most 20 are possible"),
        ("--disk", "path=x,serial=a b", "serial: must be printable ASCII without spaces"),
        ("--disk", "path=x,serial=é", "serial: must be printable ASCII without spaces"),
        ("--disk", "path=x,queues=0", "queues: must be between 1 and 64"),
        ("--disk", "path=x,queues=65", "queues: must be between 1 and 64"),
        ("--net", "mac=52:54:00:12:34:56", "needs tap=NAME"),
        ("--net", "tap=t,bridge=br0", "unknown key 'bridge'; it takes tap, mac, queues and dma"),
        ("--net", "tap=t,mac=52:54:00:12:34", "mac: must be six hexadecimal bytes like 52:54:00:12:34:56"),
        ("--net", "tap=t,mac=52:54:00:12:34:56:78", "mac: must be six hexadecimal bytes like 52:54:00:12:34:56"),
        ("--net", "tap=t,mac=52:54:00:12:34:5g", "mac: must be six hexadecimal bytes like 52:54:00:12:34:56"),
        ("--net", "tap=t,mac=52:54:00:12:34:+5", "mac: must be six hexadecimal bytes like 52:54:00:12:34:56"),
        (
            "--net",
            "tap=t,mac=53:54:00:12:34:56",
            "mac: 53:54:00:12:34:56 is a multicast address; a card needs a unicast address like 52:54:00:12:34:56",
        ),
        (
            "--net",
            "tap=t,mac=00:00:00:00:00:00",
            "mac: 00:00:00:00:00:00 is all zeros; a card needs a unicast address like 52:54:00:12:34:56",
        ),
        ("--net", "tap=sixteen-letters-", "tap: not an interface name: 1 to 15 characters, no spaces, '/', ':' or '%'"),
        ("--net", "tap=a/b", "tap: not an interface name: 1 to 15 characters, no spaces, '/', ':' or '%'"),
        ("--net", "tap=..", "tap: not an interface name: 1 to 15 characters, no spaces, '/', ':' or '%'"),
        ("--net", "tap=tap%d", "tap: not an interface name: 1 to 15 characters, no spaces, '/', ':' or '%'"),
        ("--net", "tap=t,queues=many", "queues: must be between 1 and 64"),
        (
            "--device",
            "/run/x.sock",
            "'/run/x.sock' is not KEY=VALUE; it takes socket and dma (a comma inside a value is written twice)",
        ),
        ("--device", "socket=", "socket: is empty"),
        ("--device", "path=/x", "unknown key 'path'; it takes socket and dma"),
        ("--paths", "", "is empty"),
        ("--paths", "mapped", "message cannot be left out, for some accesses have no other path; write mapped,message"),
        ("--paths", "messages", "'messages' is no path; they are mapped, ioeventfd, ioregionfd, stand-in and message"),
        ("--paths", "mapped,,message", "'' is no path; they are mapped, ioeventfd, ioregionfd, stand-in and message"),
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
        ("outrigger boot", "boot: unknown command; the command is 'outrigger run', see 'outrigger run --help'"),
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
fn a_socket_path_fits_sockaddr_un() {
    let path = "x".repeat(108);
    let value = format!("socket={path}");
    assert_eq!(
        line(&["--device", &value]),
        format!("--device {value}: socket: is 108 bytes long, at most 107 are possible")
    );
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
        show_devices: false,
        stats: false,
    };
    assert_eq!(config(&[]), expected);
}

#[test]
fn every_option_is_understood() {
    let words = "--initrd i --cmdline -quiet --cpus 64 --memory 2G,hugepages=on --console none --show-devices --stats --paths message,mapped";
    let config = config(&words.split(' ').collect::<Vec<_>>());
    assert_eq!(config.initrd.as_deref(), Some(Path::new("i")));
    assert_eq!((config.cmdline.as_str(), config.cpus), ("-quiet", 64));
    assert_eq!(config.memory, MemoryConfig { size: 2 << 30, hugepages: true });
    assert_eq!((config.console, config.show_devices, config.stats), (ConsoleConfig::None, true, true));
    assert_eq!(config.paths, AllowedPaths::only(&[PathName::Mapped]));
}

#[test]
fn devices_keep_the_order_of_the_command_line() {
    let words = "--net tap=a --disk path=x,serial=S,queues=4 --device socket=/s,dma=messages --net tap=b,mac=52:54:00:Ab:cD:0f,queues=2 \
                 --disk readonly=on,path=y,,z=1,dma=messages --net dma=messages,tap=c --device socket=/t,dma=shared";
    let config = config(&words.split_whitespace().collect::<Vec<_>>());
    let disk = |path: &str, readonly, serial: Option<&str>, queues, dma| {
        PciDeviceConfig::Disk(DiskConfig {
            path: path.into(),
            readonly,
            serial: serial.map(str::to_owned),
            queues,
            dma,
        })
    };
    let net = |tap: &str, mac, queues, dma| PciDeviceConfig::Net(NetConfig { tap: tap.into(), mac, queues, dma });
    let socket = |path: &str, dma| PciDeviceConfig::Socket(SocketConfig { path: path.into(), dma });
    let expected = [
        net("a", None, None, Dma::Shared),
        disk("x", false, Some("S"), Some(4), Dma::Shared),
        socket("/s", Dma::Messages),
        net("b", Some(MacAddress([0x52, 0x54, 0, 0xab, 0xcd, 0x0f])), Some(2), Dma::Shared),
        disk("y,z=1", true, None, None, Dma::Messages),
        net("c", None, None, Dma::Messages),
        socket("/t", Dma::Shared),
    ];
    assert_eq!(config.pci_devices, expected);
}

#[test]
fn the_bus_has_room_for_31_devices() {
    let values: Vec<String> = (0..32).map(|index| format!("--disk=path=d{index}")).collect();
    let mut words: Vec<&str> = values.iter().map(String::as_str).collect();
    assert_eq!(line(&words), "--disk, --net, --device: 32 PCI devices given, the bus has room for 31");
    words.pop();
    assert_eq!(config(&words).pci_devices.len(), 31);
}

#[test]
fn a_tap_or_socket_serves_one_device() {
    assert_eq!(
        line(&["--net", "tap=t", "--disk", "path=x", "--net", "tap=t,queues=2"]),
        "--net tap=t: is given twice; each device needs its own"
    );
    assert_eq!(
        line(&["--device", "socket=s", "--device", "socket=s"]),
        "--device socket=s: is given twice; each device needs its own"
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
    for word in ["Examples:", "Exit status:", "--disk", "units K, M, G, T", "Ctrl-A x", "queues", "32M to 1T"] {
        assert!(help.contains(word), "{word} is not in:\n{help}");
    }
    assert!(help.lines().all(|line| line.len() <= 120), "{help}");
    assert!(text("outrigger --help").contains("outrigger run --kernel"));
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
