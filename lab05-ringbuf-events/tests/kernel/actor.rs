//! The process that is watched: this very program, told what to do. No tool has to be there.

use std::{
    env,
    net::{SocketAddr, TcpStream, UdpSocket},
    process::{Command, ExitCode},
    thread,
    time::Duration,
};

use testbed::{Cgroup, End, Finished, Running};

use crate::lab::PATIENCE;

/// What says that this program is an actor, and what it is to do.
const SCRIPT: &str = "LAB05_SCRIPT";

/// A program that does what `script` says, in a cgroup and inside a host: words such as `tcp:192.0.2.2:80`, `udp:…`,
/// `hold:192.0.2.2:80`, `threads:3`, `idle:3`, `child:exit:0`, `wait:500`, `exit:3`. It prints what came of each.
pub fn command(end: &End, cgroup: &Cgroup, script: &str, args: &[&str]) -> Command {
    let program = env::current_exe().unwrap();
    let mut command = cgroup.command(&end.host, program).unwrap();
    command.env(SCRIPT, script).args(args);
    command
}

/// Runs it to its end.
pub fn run(end: &End, cgroup: &Cgroup, script: &str, args: &[&str]) -> (u32, Finished) {
    let running = Running::start(command(end, cgroup, script, args)).unwrap();
    (running.id(), running.wait(PATIENCE).unwrap())
}

/// Does what the environment says, if it says anything.
pub fn act() -> Option<ExitCode> {
    let script = env::var(SCRIPT).ok()?;
    for word in script.split_ascii_whitespace() {
        let (verb, object) = word.split_once(':').expect("a verb and an object");
        match verb {
            "tcp" => {
                let target: SocketAddr = object.parse().expect("an address");
                match TcpStream::connect_timeout(&target, Duration::from_secs(10)) {
                    Ok(_) => println!("{word}: connected"),
                    Err(error) => println!("{word}: {:?}", error.kind()),
                }
            }
            // Three datagrams of 100 bytes, and as many answers.
            "udp" => exchange(word, object.parse().expect("an address")),
            "threads" => {
                let number: u32 = object.parse().expect("a number");
                let threads: Vec<_> = (0..number)
                    .map(|_| thread::spawn(|| thread::sleep(Duration::from_millis(50))))
                    .collect();
                for thread in threads {
                    thread.join().expect("it sleeps");
                }
            }
            // A connection that stays open for as long as the process lives.
            "hold" => match TcpStream::connect(object) {
                Ok(stream) => {
                    println!("{word}: connected");
                    std::mem::forget(stream);
                }
                Err(error) => println!("{word}: {:?}", error.kind()),
            },
            // Threads that live as long as the process.
            "idle" => {
                for _ in 0..object.parse().expect("a number") {
                    thread::spawn(|| thread::sleep(PATIENCE));
                }
            }
            // This program once more, which does what stands behind the colon.
            "child" => {
                let mut child = Command::new(env::current_exe().expect("a path"));
                let status = child.env(SCRIPT, object).status().expect("a child");
                println!("{word}: {status}");
            }
            "wait" => thread::sleep(Duration::from_millis(object.parse().expect("milliseconds"))),
            "exit" => return Some(ExitCode::from(object.parse::<u8>().expect("a status"))),
            verb => panic!("{verb} is nothing that an actor can do"),
        }
    }
    Some(ExitCode::SUCCESS)
}

fn exchange(word: &str, target: SocketAddr) {
    let any: SocketAddr = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
        .parse()
        .expect("an address");
    let socket = UdpSocket::bind(any).expect("a socket");
    socket
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    for _ in 0..3 {
        if let Err(error) = socket.send_to(&[7; 100], target) {
            println!("{word}: {:?}", error.kind());
            return;
        }
        let mut buffer = [0; 200];
        if let Err(error) = socket.recv(&mut buffer) {
            println!("{word}: {:?}", error.kind());
            return;
        }
    }
    println!("{word}: answered");
}
