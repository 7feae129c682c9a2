//! The testbed on a real kernel.

use std::{
    env, fs,
    net::{IpAddr, SocketAddr},
    os::{fd::AsFd as _, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use testbed::{
    Cgroup, Host, LinkOptions, Result, Running, Switch,
    bpf::{self, ProgramType, TestRun},
    packets::{self, Mutate as _},
    pcap,
    traffic::{self, Connection, Exchange, Flood, Server},
};

const SOON: Duration = Duration::from_secs(2);
const SILENCE: Duration = Duration::from_millis(300);

testbed::kernel_tests! {
    fn a_capture_sees_exactly_the_frames_that_were_injected() -> Result {
        let link = Host::new("client")?.join(&Host::new("server")?)?;
        let frames = [
            link.left.frame_to(&link.right).ipv4("192.0.2.1", "192.0.2.2").udp(1000, 9).payload(b"plain").build(),
            link.left.frame_to(&link.right).vlan(10).ipv4("192.0.2.1", "192.0.2.2").udp(1000, 9).build(),
            link.left.frame_to(&link.right).service_vlan(20).vlan(10).ipv6("2001:db8::1", "2001:db8::2").build(),
            link.left.frame_to(&link.right).vlan(1).priority(5).vlan(2).vlan(3).arp_request("192.0.2.1", "192.0.2.2").build(),
            link.left.frame_to(&link.right).ether_type(0x88cc).payload(packets::random_bytes(1, 1500)).build(),
        ];
        let mut capture = link.right.host.capture("eth0")?;
        let sent = link.left.host.injector("eth0")?.send_all(&frames)?;
        assert_eq!(sent, 5);
        assert_eq!(capture.all(SILENCE)?, frames);
        Ok(())
    }

    fn a_quiet_link_is_silent() -> Result {
        let (client, server) = (Host::new("client")?, Host::new("server")?);
        client.join(&server)?;
        let mut captures = [client.capture("eth0")?, server.capture("eth0")?];
        for capture in &mut captures {
            assert_eq!(capture.next(Duration::from_secs(2))?, None);
        }
        Ok(())
    }

    fn connecting_a_host_to_a_quiet_switch_is_silent() -> Result {
        let switch = Switch::new()?;
        let (first, second) = (Host::new("first")?, Host::new("second")?);
        switch.connect(&first)?;
        let mut capture = first.capture("eth0")?;
        switch.connect(&second)?;
        assert_eq!(capture.next(Duration::from_secs(2))?, None);
        Ok(())
    }

    fn ten_thousand_frames_at_once_all_arrive() -> Result {
        for native_xdp in [false, true] {
            let link = Host::new("client")?.join(&Host::new("server")?)?;
            if native_xdp {
                link.right.pass_xdp()?;
            }
            let frame = link.left.frame_to(&link.right).ipv4("192.0.2.1", "192.0.2.2").udp(1000, 9).build();
            let mut capture = link.right.host.capture("eth0")?;
            link.left.host.injector("eth0")?.send_all(std::iter::repeat_n(&frame, 10_000))?;
            assert_eq!(capture.all(SILENCE)?.len(), 10_000, "with native XDP: {native_xdp}");
        }
        Ok(())
    }

    fn three_hosts_on_a_switch_reach_each_other_and_overhear_nothing() -> Result {
        let switch = Switch::new()?;
        let hosts = ["a", "b", "c"].map(|name| Host::new(name).unwrap());
        let ends = hosts.each_ref().map(|host| switch.connect(host).unwrap());
        let mut overheard = hosts[1].capture("eth0")?;

        for (from, to) in [(0, 2), (2, 0)] {
            let (from, to) = (&ends[from], &ends[to]);
            let server = Server::udp(&to.host, 7)?;
            for address in [IpAddr::from(to.ipv4), to.ipv6.into()] {
                let exchange = traffic::udp_exchange(&from.host, SocketAddr::new(address, 7), 3, SOON)?;
                assert_eq!(exchange, Exchange { sent: 3, received: 3 }, "{address}");
            }
            assert_eq!(server.packets(), 6);
        }
        assert_eq!(overheard.next(SILENCE)?, None);
        Ok(())
    }

    fn a_switch_forwards_tags_and_broken_frames_as_they_are() -> Result {
        let switch = Switch::new()?;
        let hosts = [Host::new("a")?, Host::new("b")?];
        let [a, b] = [switch.connect(&hosts[0])?, switch.connect(&hosts[1])?];
        let whole = a.frame_to(&b).ipv4("192.0.2.9", b.ipv4).udp(1, 2).payload([0; 100]).build();
        let frames = [
            whole.clone().truncate_to(14 + 12),
            whole.clone().truncate_to(14 + 30),
            whole.with_byte(14, 0x41),
            a.frame_to(&b).service_vlan(20).vlan(10).ipv4("192.0.2.9", b.ipv4).udp(1, 2).build(),
            a.frame_to(&b).ether_type(0x0800).build(),
        ];
        let mut capture = hosts[1].capture("eth0")?;
        hosts[0].injector("eth0")?.send_all(&frames)?;
        assert_eq!(capture.all(SILENCE)?, frames);
        Ok(())
    }

    fn further_links_get_further_subnets_and_interfaces() -> Result {
        let (left, right) = (Host::new("left")?, Host::new("right")?);
        left.join(&right)?;
        let second = left.join_with(&right, LinkOptions { mtu: 9000, queues: 2, ..LinkOptions::default() })?;
        assert_eq!(second.right.interface, "eth1");
        assert_eq!(second.right.ipv4.to_string(), "198.51.100.2");
        assert_eq!(second.left.ipv6.to_string(), "2001:db8:0:2::1");
        Ok(())
    }

    fn the_other_end_of_a_link_vanishes_with_its_host() -> Result {
        let (client, server) = (Host::new("client")?, Host::new("server")?);
        client.join(&server)?;
        drop(client);
        wait_until("eth0 has gone", || server.index_of("eth0").is_err());
        Ok(())
    }

    fn an_empty_program_of_each_type_lets_a_packet_pass() -> Result {
        let frame = packets::ethernet().ipv4("192.0.2.1", "192.0.2.2").udp(1, 2).payload([0; 64]).build();
        for program_type in [ProgramType::Xdp, ProgramType::SchedCls, ProgramType::CgroupSkb] {
            let program = bpf::empty_program(program_type)?;
            let outcome = bpf::test_run(program.as_fd(), TestRun::repeated(&frame, 1000))?;
            assert_eq!(outcome.retval, program_type.pass(), "{program_type:?}");
            assert_eq!(outcome.data_out[14..], frame[14..], "{program_type:?}");
        }
        Ok(())
    }

    fn a_panic_inside_a_host_is_passed_on() {
        let host = Host::new("host").unwrap();
        let panic = std::panic::catch_unwind(|| host.run(|| panic!("inside"))).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"inside"));
    }

    fn ping_reaches_the_other_end_of_a_link_over_either_ip_version() -> Result {
        let link = Host::new("client")?.join(&Host::new("server")?)?;
        for target in [IpAddr::from(link.right.ipv4), link.right.ipv6.into()] {
            let exchange = traffic::ping(&link.left.host, target, 3, SOON)?;
            assert_eq!(exchange, Exchange { sent: 3, received: 3 }, "{target}");
        }
        let nobody = "192.0.2.77".parse::<IpAddr>().unwrap();
        assert_eq!(traffic::ping(&link.left.host, nobody, 1, SILENCE)?, Exchange { sent: 1, received: 0 });
        Ok(())
    }

    fn tcp_bytes_come_back_and_connections_tell_how_they_ended() -> Result {
        let link = Host::new("client")?.join(&Host::new("server")?)?;
        let (client, server) = (&link.left.host, Server::tcp(&link.right.host, 80)?);
        let exchange = traffic::tcp_exchange(client, (link.right.ipv6, 80).into(), 1_000_000, SOON)?;
        assert_eq!(exchange, Exchange { sent: 1_000_000, received: 1_000_000 });
        assert_eq!((server.connections(), server.bytes()), (1, 1_000_000));

        let connect = |address: &str| traffic::try_connect(client, address.parse().unwrap(), SILENCE);
        assert_eq!(connect("192.0.2.2:80")?, Connection::Connected);
        assert_eq!(connect("192.0.2.2:81")?, Connection::Refused);
        assert_eq!(connect("192.0.2.77:80")?, Connection::TimedOut);
        assert_eq!(connect("198.51.100.1:80")?, Connection::Unreachable);
        Ok(())
    }

    fn a_flood_sends_what_it_was_told_from_as_many_sources() -> Result {
        let link = Host::new("client")?.join(&Host::new("server")?)?;
        for (flood, address) in [
            (Flood::new(&link.left, &link.right), 26..30),
            (Flood::new(&link.left, &link.right).ipv6().per_second(2000), 22..38),
        ] {
            let mut capture = link.right.host.capture("eth0")?;
            assert_eq!(flood.sources(4).count(600).send()?, 600);
            let frames = capture.all(SILENCE)?;
            assert_eq!(frames.len(), 600);
            let mut sources: Vec<_> = frames.iter().map(|frame| &frame[address.clone()]).collect();
            sources.sort_unstable();
            sources.dedup();
            assert_eq!(sources.len(), 4);
        }
        Ok(())
    }

    fn a_replayed_capture_file_arrives_whole() -> Result {
        let link = Host::new("client")?.join(&Host::new("server")?)?;
        let frames: Vec<_> = (0..50).map(|seed| packets::random_bytes(seed, 60 + 20 * seed as usize)).collect();
        let path = scratch("replay.pcap");
        pcap::write(&path, &frames)?;
        let mut capture = link.right.host.capture("eth0")?;
        let replayed = pcap::replay(&link.left.host, "eth0", &path);
        fs::remove_file(&path).unwrap();
        assert_eq!(replayed?, 50);
        assert_eq!(capture.all(SILENCE)?.len(), 50);
        Ok(())
    }

    fn a_capture_leaves_out_what_the_host_sends_and_what_is_filtered() -> Result {
        let link = Host::new("client")?.join(&Host::new("server")?)?;
        let mut capture = link.left.host.capture("eth0")?.only(|frame| frame.len() > 100);
        let frame = |length| link.right.frame_to(&link.left).payload(vec![0; length]).build();
        link.left.host.inject("eth0", &frame(200))?;
        link.right.host.inject("eth0", &frame(20))?;
        link.right.host.inject("eth0", &frame(300))?;
        assert_eq!(capture.all(SILENCE)?, [frame(300)]);
        Ok(())
    }

    fn without_offloads_the_packets_of_sockets_look_as_on_a_wire() -> Result {
        let options = LinkOptions { offloads: false, ..LinkOptions::default() };
        let link = Host::new("client")?.join_with(&Host::new("server")?, options)?;
        let _server = Server::tcp(&link.right.host, 80)?;
        let mut capture = link.right.host.capture("eth0")?;
        traffic::tcp_exchange(&link.left.host, (link.right.ipv4, 80).into(), 100_000, SOON)?;
        let frames = capture.all(SILENCE)?;
        assert!(frames.iter().all(|frame| frame.len() <= 14 + 1500));
        for frame in &frames {
            let packet = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
            let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Tcp(tcp))) =
                (packet.net, packet.transport)
            else {
                panic!("no TCP: {frame:?}");
            };
            let sum = tcp.to_header().calc_checksum_ipv4(&ip.header().to_header(), tcp.payload()).unwrap();
            // There are two zeros in one's complement, and kernels write either.
            let one_zero = |sum: u16| if sum == 0xffff { 0 } else { sum };
            assert_eq!(one_zero(sum), one_zero(tcp.checksum()));
        }
        Ok(())
    }

    fn an_interface_can_be_set_down_and_deleted() -> Result {
        let link = Host::new("client")?.join(&Host::new("server")?)?;
        let (client, server) = (&link.left.host, &link.right);
        server.down()?;
        assert_ne!(traffic::ping(client, server.ipv4, 1, SILENCE)?.received, 1);
        server.up()?;
        for target in [IpAddr::from(server.ipv4), server.ipv6.into()] {
            assert!(traffic::ping(client, target, 1, SOON)?.is_complete(), "{target}");
        }
        server.delete()?;
        assert!(server.host.index_of("eth0").is_err());
        assert!(client.index_of("eth0").is_err());
        Ok(())
    }

    fn a_further_address_answers_those_who_know_it() -> Result {
        let link = Host::new("client")?.join(&Host::new("server")?)?;
        let further: IpAddr = "192.0.2.200".parse().unwrap();
        link.right.add_address(further, 24)?;
        link.left.knows(further, link.right.mac)?;
        assert!(traffic::ping(&link.left.host, further, 1, SOON)?.is_complete());
        Ok(())
    }

    fn links_that_are_not_quiet_find_their_neighbours_themselves() -> Result {
        let options = LinkOptions { quiet: false, ..LinkOptions::default() };
        let link = Host::new("client")?.join_with(&Host::new("server")?, options)?;
        for target in [IpAddr::from(link.right.ipv4), link.right.ipv6.into()] {
            assert!(traffic::ping(&link.left.host, target, 1, SOON)?.is_complete(), "{target}");
        }
        Ok(())
    }

    fn two_testbeds_with_the_same_names_do_not_meet() {
        thread::scope(|scope| {
            for port in [1001, 1002, 1003, 1004] {
                scope.spawn(move || {
                    let link = Host::new("client").unwrap().join(&Host::new("server").unwrap()).unwrap();
                    let server = Server::udp(&link.right.host, port).unwrap();
                    let target = SocketAddr::from((link.right.ipv4, port));
                    let exchange = traffic::udp_exchange(&link.left.host, target, 50, SOON).unwrap();
                    assert!(exchange.is_complete());
                    assert_eq!(server.packets(), 50);
                });
            }
        });
    }

    fn a_program_runs_inside_its_host_and_in_its_cgroup() -> Result {
        let host = Host::new("host")?;
        let cgroup = Cgroup::new("inside")?;
        let child = cgroup.child("deeper")?;
        let mut command = child.command(&host, "sh")?;
        command.args(["-c", "readlink /proc/self/ns/net; cat /proc/self/cgroup"]);
        let finished = Running::start(command)?.wait(SOON)?;
        let namespace = host.run(|| fs::read_link("/proc/thread-self/ns/net").unwrap());
        assert_eq!(finished.stdout.lines().next(), namespace.to_str(), "{finished:?}");
        let path = format!("0::/{}", child.name()?.display());
        assert!(finished.stdout.lines().any(|line| line == path), "{finished:?}");
        assert_ne!(cgroup.id()?, child.id()?);
        Ok(())
    }

    fn a_dropped_cgroup_is_gone_with_its_children_and_processes() -> Result {
        let host = Host::new("host")?;
        let cgroup = Cgroup::new("dropped")?;
        let child = cgroup.child("child")?;
        let mut command = child.command(&host, "sleep")?;
        command.arg("1000");
        let mut sleeper = Running::start(command)?;
        let path = cgroup.path().to_owned();
        // In the order in which one would rather not have it.
        drop(cgroup);
        assert!(!path.exists());
        wait_until("the process is gone", || !sleeper.is_running());
        drop(child);
        Ok(())
    }

    fn what_a_killed_process_leaves_behind_is_swept() -> Result {
        if env::var_os(INNER).is_some() {
            let host = Host::new("host")?;
            let cgroup = Cgroup::new("orphan")?;
            let mut command = cgroup.command(&host, "sleep")?;
            command.arg("1000");
            let sleeper = Running::start(command)?;
            println!("{} {} ready", cgroup.path().display(), sleeper.id());
            thread::sleep(Duration::from_mins(1));
            return Ok(());
        }
        let inner = Running::start(again("what_a_killed_process_leaves_behind_is_swept"))?;
        // Before Linux 6.2 it fills XDP's dispatcher first, which takes a while.
        inner.wait_for("ready", 10 * SOON)?;
        let told = inner.stdout();
        let line = told.lines().find(|line| line.ends_with("ready")).unwrap();
        // With one CPU the test's name stands ahead of them.
        let mut words = line.rsplit(' ').skip(1);
        let sleeper = Path::new("/proc").join(words.next().unwrap());
        let cgroup = PathBuf::from(words.next().unwrap());
        assert!(cgroup.exists());
        testbed::sweep()?;
        assert!(cgroup.exists(), "the cgroup of a living process was swept");

        drop(inner);
        wait_until("the child has died with its parent", || !sleeper.exists());
        testbed::sweep()?;
        assert!(!cgroup.exists());
        Ok(())
    }

    fn a_started_program_outlives_its_thread_but_not_its_guard() -> Result {
        let host = Host::new("host")?;
        let mut sleeper = thread::scope(|scope| {
            let start = || {
                let mut command = host.command("sleep");
                command.arg("1000");
                Running::start(command)
            };
            scope.spawn(start).join().unwrap()
        })?;
        thread::sleep(SILENCE);
        assert!(sleeper.is_running());
        let process = Path::new("/proc").join(sleeper.id().to_string());
        drop(sleeper);
        assert!(!process.exists());
        Ok(())
    }

    fn the_current_thread_can_enter_a_host_and_comes_back() -> Result {
        let namespace = || fs::read_link("/proc/thread-self/ns/net").unwrap();
        let host = Host::new("host")?;
        let before = namespace();
        let inside = host.enter()?;
        assert_eq!(namespace(), host.run(namespace));
        drop(inside);
        assert_eq!(namespace(), before);
        Ok(())
    }

    fn without_the_switch_tests_are_listed_and_left_out() {
        let run = |args: &[&str]| {
            let mut command = again("");
            command.args(args).env_remove(testbed::harness::SWITCH);
            text(&command.output().unwrap())
        };
        let told = run(&[]);
        assert!(told.starts_with("testbed: ") && told.lines().count() == 1, "{told}");
        assert!(told.ends_with(" kernel tests left out; they need root and a kernel: run `cargo xtask test`\n"), "{told}");
        let listed = run(&["--list"]);
        assert!(listed.contains("a_panic_inside_a_host_is_passed_on: test\n"), "{listed}");
        assert_eq!(run(&["--list", "--exact", "a_quiet_link_is_silent"]).lines().count(), 1);
    }

    fn an_unsupported_test_is_shown_with_its_reason_and_counted() {
        if env::var_os(INNER).is_some() {
            testbed::harness::unsupported("the moon is full");
        }
        let output = again("an_unsupported_test_is_shown_with_its_reason_and_counted").output().unwrap();
        let told = text(&output);
        assert!(output.status.success(), "{told}");
        assert!(told.contains("ignored (unsupported: the moon is full)"), "{told}");
        assert!(told.contains("0 passed; 0 failed; 1 ignored"), "{told}");
        assert!(told.contains("1 of the ignored tests are unsupported here"), "{told}");
    }

    fn outcomes_are_written_to_the_file_that_is_named() {
        match env::var(INNER).as_deref() {
            Ok("passes") => return,
            Ok("falls back") => return testbed::harness::falls_back("walking: no bus"),
            Ok("unsupported") => testbed::harness::unsupported("no legs"),
            Ok(_) => panic!("lost"),
            Err(_) => {}
        }
        let results = scratch("results");
        let runs = ["passes", "falls back", "unsupported", "fails"];
        for run in runs {
            let mut command = again("outcomes_are_written_to_the_file_that_is_named");
            command.env(INNER, run).env(testbed::harness::RESULTS, &results).output().unwrap();
        }
        let lines = fs::read_to_string(&results).unwrap();
        fs::remove_file(&results).unwrap();
        let lines: Vec<serde_json::Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let told: Vec<_> = lines.iter().map(|line| (line["outcome"].as_str(), line["why"].as_str())).collect();
        let end = (None, None);
        assert_eq!(
            told,
            [
                (Some("passed"), None),
                end,
                (Some("fell_back"), Some("walking: no bus")),
                end,
                (Some("unsupported"), Some("no legs")),
                end,
                (Some("failed"), Some("lost")),
                end,
            ]
        );
        assert!(lines.iter().step_by(2).all(|line| line["test"] == "outcomes_are_written_to_the_file_that_is_named"));
        assert!(lines.iter().skip(1).step_by(2).all(|line| line["ended"] == true));
    }

    fn tests_can_be_chosen_by_their_names() {
        let mut command = again("");
        command.env(testbed::harness::ONLY, "a_quiet_link_is_silent,a_panic_inside_a_host_is_passed_on");
        let told = text(&command.output().unwrap());
        assert!(told.contains("2 passed; 0 failed"), "{told}");
    }

    fn a_failing_test_is_shown_with_its_message() -> Result<(), String> {
        match env::var(INNER).as_deref() {
            Ok("panic") => panic!("two is not three"),
            Ok(_) => return Err("three is not two".into()),
            Err(_) => {}
        }
        for (how, message) in [("panic", "two is not three"), ("error", "three is not two")] {
            let output = again("a_failing_test_is_shown_with_its_message").env(INNER, how).output().unwrap();
            let told = text(&output);
            assert_eq!(output.status.code(), Some(101), "{told}");
            assert!(told.contains(message) && told.contains("1 failed"), "{told}");
        }
        Ok(())
    }

    fn a_demo_passes_the_exit_status_on_and_appends_the_interface() {
        let mut demo = Command::new(env!("CARGO_BIN_EXE_testbed"));
        demo.args(["demo", "lab01", "--", "sh", "-c", "echo $0 $1; exit 7"]);
        let output = demo.output().unwrap();
        assert_eq!(output.status.code(), Some(7));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "--iface eth0\n");
    }

    fn a_demo_gives_a_program_rules_where_the_user_gives_none() {
        let told = |args: &str| {
            let mut demo = Command::new(env!("CARGO_BIN_EXE_testbed"));
            demo.args(["demo", "lab02", "--", "sh", "-c", "echo \"$@\"", "sh"]).args(args.split_whitespace());
            String::from_utf8(demo.output().unwrap().stdout).unwrap()
        };
        let rules = "--block-ip 192.0.2.3 --block-port tcp/23 --rate-limit 200";
        assert_eq!(told("--json"), format!("--json {rules} --stats-interval 1s --iface eth0\n"));
        assert_eq!(told("--allow-port=80"), "--allow-port=80 --stats-interval 1s --iface eth0\n");
        assert_eq!(told("--stats-interval 3s"), format!("--stats-interval 3s {rules} --iface eth0\n"));
    }

    fn a_demo_without_root_names_cause_and_mend() {
        // Where anybody may read it.
        let program = scratch("demo");
        testbed::copy_program(env!("CARGO_BIN_EXE_testbed"), &program).unwrap();
        let mut demo = Command::new(&program);
        demo.args(["demo", "lab01", "--", "true"]).uid(65534).gid(65534);
        let output = demo.output();
        fs::remove_file(&program).unwrap();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            text(&output),
            "error: the demo's hosts need root: use `cargo xtask run lab01`, or sudo\n"
        );
    }

    fn a_wrong_usage_of_the_demo_ends_with_status_2() {
        for args in [&["demo"][..], &["demo", "lab99", "--", "true"], &["demo", "lab01"]] {
            let output = Command::new(env!("CARGO_BIN_EXE_testbed")).args(args).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "{args:?}");
        }
    }

    fn a_demo_forwards_sigterm_to_the_program() -> Result {
        let mut demo = Command::new(env!("CARGO_BIN_EXE_testbed"));
        demo.args(["demo", "lab01", "--", "sh", "-c", "trap 'echo detached; exit 3' TERM; echo started; while :; do sleep 0.05; done"]);
        let demo = Running::start(demo)?;
        demo.wait_for("started", SOON)?;
        demo.signal(nix::sys::signal::Signal::SIGTERM)?;
        let finished = demo.wait(SOON)?;
        assert_eq!(finished.status.code(), Some(3));
        assert!(finished.stdout.ends_with("detached\n"));
        Ok(())
    }
}

/// Set in a test that runs once more, as a process of its own, to see how that ends.
const INNER: &str = "TESTBED_INNER";

/// This test program, to run one of its tests only.
fn again(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.env(INNER, "1");
    if !test.is_empty() {
        command.args(["--exact", test]);
    }
    command
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn scratch(name: &str) -> PathBuf {
    env::temp_dir().join(format!("testbed-{}-{name}", std::process::id()))
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(20), "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
