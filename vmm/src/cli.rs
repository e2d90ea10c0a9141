//! The command line: what `outrigger --help` shows, and how arguments become a [`Config`].
//!
//! Everything that is wrong with them is told in one line ([`UsageError`]), clap's own complaints included.

mod ctl;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use outrigger_process::options::{named, switch};

use self::ctl::CtlArgs;
use crate::config::device::Kind;
use crate::config::{
    self, AllowedPaths, Config, ConsoleConfig, DEFAULT_CMDLINE, DeviceConfig, KINDS, MemoryConfig, Problem, UsageError,
};
use crate::ctl::Call;

/// Exit statuses, in the help and nowhere else in words.
const EXIT_STATUS: &str = "\
Exit status:
    0  the guest powered off, or was stopped by 'outrigger ctl'
    1  Outrigger itself failed
    2  the command line, or a file it names, cannot be used
    3  the host lacks something: KVM, a permission, memory
    4  the guest rebooted
    5  the guest crashed (triple fault, or an instruction KVM cannot run); its registers are on stderr
    6  a device process died; the guest went on, and later powered off or rebooted
  130  Ctrl-A x at the console, or SIGINT
  143  SIGTERM (any signal that ends it: 128 plus its number)";

const RUN_EXAMPLES: &str = "\
Examples:
  outrigger run --kernel bzImage --initrd initramfs.img --memory 1G
  outrigger run --kernel vmlinux --cmdline 'console=ttyS0 root=/dev/vda rw' --disk path=root.img
  outrigger run --kernel bzImage --cpus 4 --disk path=root.img,serial=root --disk path=cd.iso,readonly=on
  outrigger run --kernel bzImage --initrd initramfs.img --net tap=tap0,mac=52:54:00:12:34:56,mtu=9000
  outrigger run --kernel bzImage --initrd initramfs.img --device socket=/run/nvme.sock --show-devices
  outrigger run --kernel bzImage --disk path=root.img,queues=4,dma=messages --paths message --show-devices
  outrigger run --kernel bzImage --device program=./my-device,color=red
  outrigger run --kernel bzImage --disk path=root.img --control vm.sock
  outrigger vfio bind 0000:01:00.0 && outrigger run --kernel bzImage --initrd initramfs.img --vfio 0000:01:00.0

PCI devices get the slots 00:01.0, 00:02.0 and so on in the order given, 31 at most.
A comma inside a value is written twice: --disk path=a,,b.img opens 'a,b.img'.

At a terminal, Ctrl-A x ends the guest, Ctrl-A c sends a break, Ctrl-A Ctrl-A sends Ctrl-A.
RUST_LOG=info (or debug, trace) shows what Outrigger does, on stderr.
";

const EXAMPLE: &str = "\
Example:
  outrigger run --kernel bzImage --initrd initramfs.img --disk path=root.img --net tap=tap0

'outrigger run --help' explains every option and the exit status.";

/// Runs a Linux guest on KVM; every PCI device is a process of its own that speaks vfio-user.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, after_help = EXAMPLE, disable_help_subcommand = true, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(RunArgs),
    Ctl(CtlArgs),
    /// List the host's PCI devices, and change their drivers so that a guest can have them (see --vfio)
    #[command(disable_help_flag = true)]
    Vfio {
        /// list, bind ADDRESS or unbind ADDRESS: for outrigger-vfio, which is the authority on them
        #[arg(value_name = "COMMAND", required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

/// Boot a guest and stay until it ends
#[derive(Debug, Args)]
#[command(after_help = help_end(), max_term_width = 100)]
struct RunArgs {
    /// Kernel to boot: a bzImage, or an ELF vmlinux with a PVH entry
    #[arg(long, value_name = "PATH")]
    kernel: PathBuf,

    /// Initial RAM disk, loaded beside the kernel
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,

    /// The kernel's command line, at most 2047 bytes; it replaces the default
    ///
    /// panic=-1 in the default makes a kernel panic a reboot, so that the run ends
    #[arg(long, value_name = "STR", allow_hyphen_values = true, default_value = DEFAULT_CMDLINE)]
    cmdline: String,

    /// Virtual CPUs, 1 to 64
    #[arg(long, value_name = "N", allow_negative_numbers = true, default_value = "1")]
    cpus: String,

    /// Guest RAM, 32M to 1T in multiples of 4K (units K, M, G, T; 1K is 1024 bytes) [default: 512M]
    ///
    /// hugepages=on takes it from the host's pool of 2M pages (vm.nr_hugepages)
    #[arg(long, value_name = "SIZE[,hugepages=on]", verbatim_doc_comment)]
    memory: Option<String>,

    /// Ways from a guest access to a device that may be used, separated by commas [default: all]
    ///
    /// Each part of a device takes the first of these that its process offers for it:
    /// mapped      the guest accesses the process's memory, without an exit
    /// ioeventfd   KVM signals the process: writes to doorbells
    /// ioregionfd  KVM asks the process, if the host's KVM can (protocol/kvm-ioregionfd)
    /// stand-in    Outrigger asks the process in KVM's place, by the same protocol
    /// message     Outrigger asks the process; this one is always needed
    /// Leave some out to compare or to debug, and see the result with --show-devices
    #[arg(long, value_name = "PATH,…", verbatim_doc_comment)]
    paths: Option<String>,

    /// Where the guest's serial port (ttyS0) leads
    ///
    /// stdio      standard input and output; a terminal is put into raw mode meanwhile
    /// file=PATH  output to a file, truncated, or created for its owner alone (a symbolic link is
    ///            not followed); no input
    /// none       nowhere
    #[arg(long, value_name = "stdio|file=PATH|none", default_value = "stdio", verbatim_doc_comment)]
    console: String,

    /// Serve a control socket here, for 'outrigger ctl PATH' and for curl (docs/CONTROL.md)
    ///
    /// Only root and the user who runs Outrigger can use it. A socket that an earlier run left there is replaced
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Permit 'outrigger ctl PATH replace' to start programs below this directory, besides those named here
    ///
    /// Symbolic links are followed first. Whoever can write there chooses what runs as the user who runs Outrigger
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,

    /// Whether the guest may run guests of its own: on or off
    ///
    /// on shows it the processor's vmx or svm, if the host's KVM offers it: much of KVM's code is in its reach then
    #[arg(long, value_name = "on|off", default_value = "off")]
    nested: String,

    /// Print how each device is reached and why, register range by register range, before the guest starts
    #[arg(long)]
    show_devices: bool,

    /// Print how many accesses to devices came to Outrigger, and KVM's count of exits, when the guest has ended
    ///
    /// Accesses that were mapped, or taken by KVM for an ioeventfd or ioregionfd, never come to Outrigger
    #[arg(long)]
    stats: bool,

    /// Any PCI device, served by a process of its own; repeat it for more
    ///
    /// program   the program to start; a bare name is looked for beside outrigger itself. It reads all keys that are
    ///           not listed here ('PROGRAM --help' explains them), is told how many vCPUs there are, and is given one
    ///           end of a socket on which it serves the device (docs/DEVICE-PROGRAMS.md)
    /// socket    in place of program: the Unix socket on which a vfio-user server of yours listens
    /// user      whose server may be given guest RAM: a name, a number or any (default: root's, and that of the user
    ///           who runs outrigger); with socket only
    /// dma       shared: the process maps guest RAM (default); messages: it asks for every byte
    /// restart   N/SECONDS: when the process fails, another one takes its place, at most N times in any SECONDS, and
    ///           the guest's accesses wait meanwhile; off: the guest loses the device (exit status 6). Default: 5/60s
    ///           for a program that keeps a journal, with which the guest notices nothing; off for others. Without a
    ///           journal the device is reset, which its driver must be able to bear. With socket, Outrigger connects
    ///           again as soon as somebody listens
    /// deadline  how long the process may take for any answer (default: 10s; 100ms to 600s). Its first answer, and a
    ///           restart in all, may take as long, but at least 10s
    /// sandbox   on: the program gives up all but its device before the guest starts, as far as the host permits
    ///           (default); require: it does not start if a layer is missing; off: to debug it. With program only
    /// p2p       on: the DMA of a physical device reaches the BARs of the guest's other physical devices, too; its
    ///           process is given their VFIO files (default: off); not with dma=vmm
    #[arg(
        long,
        value_name = "program=PATH|socket=PATH[,KEY=VALUE,…]",
        verbatim_doc_comment,
        help_heading = DEVICES,
        display_order = DEVICE_ORDER
    )]
    device: Vec<String>,
}

/// The heading that the flags for devices have in the help, and the place of the last of them.
const DEVICES: &str = "PCI devices";
const DEVICE_ORDER: usize = 1000;

/// The command line with a flag for each kind of device.
fn command() -> clap::Command {
    let flags = (1..).zip(&KINDS).map(|(order, kind)| {
        let Kind { flag, program, value, about, own, inherited: _, shares_dma: _ } = kind;
        let own = match own {
            [keys @ .., last] if !keys.is_empty() => format!("are Outrigger's own: {} and {last}", keys.join(", ")),
            keys => format!("is Outrigger's own: {}", keys.concat()),
        };
        Arg::new(*flag)
            .long(*flag)
            .value_name(*value)
            .action(ArgAction::Append)
            .help(format!("{about}; repeat it for more"))
            .long_help(format!(
                "{about}; repeat it for more\n\nShort for --device program={program},…; '{program} --help' explains its keys,\n\
                 and below {own}"
            ))
            .help_heading(DEVICES)
            .display_order(order)
    });
    Cli::command().mut_subcommand("run", |run| run.args(flags))
}

fn help_end() -> String {
    format!("{RUN_EXAMPLES}\n{EXIT_STATUS}")
}

/// The request of a command line.
#[derive(Debug, PartialEq, Eq)]
pub enum Request {
    /// Run a guest.
    Run(Box<Config>),
    /// Ask something of one that runs.
    Ctl(Call),
    /// Have outrigger-vfio do what these words say.
    Vfio(Vec<OsString>),
    /// Print this text (help or version) to standard output, and succeed.
    Print(String),
}

/// Reads the command line; `arguments` starts with the program's name.
///
/// # Errors
/// The first thing wrong with it.
pub fn parse<I>(arguments: I) -> Result<Request, UsageError>
where
    I: IntoIterator,
    I::Item: Into<OsString> + Clone,
{
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let subcommand = ["ctl", "vfio"].into_iter().find(|name| arguments.get(1).is_some_and(|word| word == name));
    let subcommand = subcommand.unwrap_or("run");
    let matches = match command().try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            return Ok(Request::Print(error.render().to_string()));
        }
        Err(error) => return Err(one_line(&error, subcommand)),
    };
    match Cli::from_arg_matches(&matches).map_err(|error| one_line(&error, subcommand))?.command {
        Command::Ctl(args) => Ok(Request::Ctl(args.call()?)),
        Command::Vfio { words } => Ok(Request::Vfio(words)),
        Command::Run(args) => {
            let run = matches.subcommand_matches("run").expect("it was just parsed");
            Ok(Request::Run(Box::new(config(args, run)?)))
        }
    }
}

/// The configuration in the arguments of `outrigger run`.
fn config(args: RunArgs, run: &ArgMatches) -> Result<Config, UsageError> {
    let given = |flag| {
        let texts = run.get_many::<String>(flag).into_iter().flatten().map(String::as_str);
        run.indices_of(flag).into_iter().flatten().zip(texts)
    };

    let mut devices: Vec<(usize, DeviceConfig)> = Vec::new();
    for kind in &KINDS {
        for (position, text) in given(kind.flag) {
            let device = option(&format!("--{}", kind.flag), text, |text| DeviceConfig::parse_kind(kind, text))?;
            devices.push((position, device));
        }
    }
    for (position, text) in given("device") {
        devices.push((position, option("--device", text, DeviceConfig::parse)?));
    }
    devices.sort_by_key(|(position, _)| *position);
    let pci_devices: Vec<DeviceConfig> = devices.into_iter().map(|(_, device)| device).collect();
    Config::check_devices(&pci_devices)?;

    Ok(Config {
        cmdline: option("--cmdline", &args.cmdline, config::parse_cmdline)?,
        cpus: option("--cpus", &args.cpus, config::parse_cpus)?,
        memory: match &args.memory {
            Some(text) => option("--memory", text, MemoryConfig::parse)?,
            None => MemoryConfig::default(),
        },
        paths: match &args.paths {
            Some(text) => option("--paths", text, AllowedPaths::parse)?,
            None => AllowedPaths::default(),
        },
        console: option("--console", &args.console, ConsoleConfig::parse)?,
        control: match &args.control {
            Some(path) => option("--control", &path.to_string_lossy(), |_| config::parse_control(path))?.into(),
            None => None,
        },
        nested: option("--nested", &args.nested, |text| Ok(switch(text)?))?,
        kernel: args.kernel,
        programs: args.programs,
        initrd: args.initrd,
        pci_devices,
        show_devices: args.show_devices,
        stats: args.stats,
    })
}

fn option<T>(flag: &str, text: &str, parse: impl FnOnce(&str) -> Result<T, Problem>) -> Result<T, UsageError> {
    parse(text).map_err(|problem| UsageError::new(named(flag, text), problem))
}

/// clap's complaint about `outrigger SUBCOMMAND …` in our words.
fn one_line(error: &clap::Error, subcommand: &str) -> UsageError {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        _ => None,
    };
    // clap names an argument as "--cpus <N>" or "<PATH>"; the flag, or the bare name, says enough.
    let bare = |name: &str| name.split(' ').next().unwrap_or_default().trim_matches(['<', '>', '.']).to_owned();
    let flag = |kind| text(kind).map(|name| bare(&name));
    let argument = flag(ContextKind::InvalidArg).unwrap_or_else(|| "the command line".to_owned());
    let usage = |option: String, words: String| UsageError::new(option, Problem::Syntax(words));
    let see = format!("see 'outrigger {subcommand} --help'");
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let given = text(ContextKind::InvalidArg).unwrap_or_default();
            let hint = match flag(ContextKind::SuggestedArg) {
                Some(meant) => format!("did you mean {meant}?"),
                None => see,
            };
            let what = if given.starts_with('-') { "unknown option" } else { "unexpected argument" };
            usage(given, format!("{what}; {hint}"))
        }
        ErrorKind::InvalidSubcommand => {
            let given = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            let words = match subcommand {
                "ctl" => format!("unknown command; {see}"),
                _ => {
                    "unknown command; there are 'outrigger run', 'outrigger ctl' and 'outrigger vfio', see 'outrigger \
                      --help'"
                        .to_owned()
                }
            };
            usage(given, words)
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            usage("no command given".to_owned(), format!("try 'outrigger {subcommand} --help'"))
        }
        ErrorKind::MissingRequiredArgument => usage(argument, format!("is missing; {see}")),
        ErrorKind::InvalidValue => usage(argument, format!("needs a value; {see}")),
        ErrorKind::TooManyValues => usage(argument, "takes no value".to_owned()),
        ErrorKind::ArgumentConflict => usage(argument, "is given twice".to_owned()),
        ErrorKind::InvalidUtf8 => usage(argument, "is not UTF-8 text".to_owned()),
        _ => {
            let rendered = error.render().to_string();
            let first = rendered.lines().next().unwrap_or_default();
            usage(argument, first.strip_prefix("error: ").unwrap_or(first).to_owned())
        }
    }
}

#[cfg(test)]
mod tests;
