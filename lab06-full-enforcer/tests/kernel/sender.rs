//! A process that sends from inside a cgroup: this test program, started once more with orders.

use std::{
    env, io,
    net::{SocketAddr, TcpStream, UdpSocket},
    process::ExitCode,
    time::Duration,
};

use testbed::{Cgroup, Host, Running};

use crate::lab::PATIENCE;

/// Set in the process that sends; its value is the orders, a line each: `udp ADDRESS`, `tcp ADDRESS`, or
/// `user NUMBER`, who obeys those that follow.
const ORDERS: &str = "LAB06_SENDER";

/// How long is waited for a connection that does not come about.
const ON_THE_WAY: Duration = Duration::from_millis(1500);

/// Has a process on `host` and in `cgroup` obey `orders`; what came of each.
#[track_caller]
pub fn order<const N: usize>(host: &Host, cgroup: &Cgroup, orders: [String; N]) -> [String; N] {
    let mut command = cgroup.command(host, env::current_exe().unwrap()).unwrap();
    command.env(ORDERS, orders.join("\n"));
    let finished = Running::start(command).unwrap().wait(PATIENCE).unwrap();
    let lines: Vec<String> = finished.stdout.lines().map(str::to_owned).collect();
    lines.try_into().unwrap_or_else(|_| panic!("{N} orders: {finished:#?}"))
}

/// Whether this process is to send.
pub fn is_wanted() -> bool {
    env::var_os(ORDERS).is_some()
}

/// Obeys the orders of the environment.
pub fn send() -> ExitCode {
    for order in env::var(ORDERS).unwrap().lines() {
        let (how, address) = order.split_once(' ').unwrap();
        if how == "user" {
            nix::unistd::setuid(address.parse::<u32>().unwrap().into()).unwrap();
            println!("user");
            continue;
        }
        let address: SocketAddr = address.parse().unwrap();
        let outcome = match how {
            "udp" => udp(address),
            _ => TcpStream::connect_timeout(&address, ON_THE_WAY).map(|_| "connected"),
        };
        match outcome {
            Ok(outcome) => println!("{outcome}"),
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => println!("denied"),
            Err(error) if matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
                println!("no answer");
            }
            Err(error) => println!("{error}"),
        }
    }
    ExitCode::SUCCESS
}

fn udp(address: SocketAddr) -> io::Result<&'static str> {
    let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    UdpSocket::bind(any)?.send_to(b"hello", address)?;
    Ok("sent")
}
