//! Attaching by TCX and by clsact, beside others, and leaving nothing behind (A2).

use aya::programs::{
    LinkOrder, TcAttachType,
    tc::{self, NlOptions, TcAttachOptions},
};
use lab01_count_packets::interface::Interface;
use lab02_xdp_firewall_common::firewall::Verdict;
use lab03_tc_egress::{
    attach::{Direction, OnHook, TcAttach, TcAttachError, TcHooks, Way, programs_on, qdiscs},
    policy::Policy,
};
use testbed::{
    End, Host, Result, Running,
    harness::{falls_back, unsupported},
    traffic,
};

use crate::{
    lab::{PATIENCE, finish, on, wait_until},
    program::{Program, classifier},
};

testbed::listed_tests![
    programs_are_attached_by_tcx_and_gone_when_dropped,
    programs_are_attached_by_clsact_and_gone_when_dropped,
    auto_takes_tcx_where_the_kernel_has_it,
    programs_of_others_are_listed_left_alone_and_still_run,
    a_clsact_of_others_stays,
    an_interface_that_has_gone_is_named,
    an_ingress_discipline_that_would_show_egress_programs_what_comes_in_is_refused,
    a_filter_that_a_killed_run_has_left_is_told_with_its_mend,
];

const WAYS: [TcAttach; 2] = [TcAttach::Tcx, TcAttach::Clsact];

fn cable() -> Result<(End, End)> {
    let link = Host::new("client")?.join(&Host::new("server")?)?;
    Ok((link.left, link.right))
}

fn interface_of(end: &End) -> Interface {
    end.host.run(|| Interface::find(&end.interface)).unwrap()
}

/// Whether the kernel has TCX. To be asked before anything is loaded, which takes long on emulated machines.
fn has_tcx(interface: &Interface) -> bool {
    match TcHooks::open(interface, TcAttach::Tcx) {
        Err(TcAttachError::NoTcx { .. }) => false,
        opened => {
            opened.unwrap();
            true
        }
    }
}

/// Attaches both programs.
fn attach(interface: &Interface, program: &mut Program, how: TcAttach) -> TcHooks {
    let mut hooks = TcHooks::open(interface, how).unwrap();
    hooks
        .attach(classifier(&mut program.ebpf, "lab03_ingress"), Direction::Ingress)
        .unwrap();
    hooks
        .attach(classifier(&mut program.ebpf, "lab03_egress"), Direction::Egress)
        .unwrap();
    hooks
}

fn names(on_hooks: &[OnHook]) -> Vec<(Direction, Way, &str)> {
    on_hooks
        .iter()
        .map(|on_hook| (on_hook.direction, on_hook.way, on_hook.name.as_deref().unwrap()))
        .collect()
}

/// How many frames were counted, in and out.
fn counted(program: &Program) -> (u64, u64) {
    let statistics = program.statistics();
    let [ingress, egress] = Direction::ALL.map(|direction| statistics.met(direction, Verdict::Pass).packets);
    (ingress, egress)
}

fn loaded() -> Program {
    Program::with(&Policy::default())
}

fn is_attached_and_gone_when_dropped(how: TcAttach, way: Way) -> Result {
    let (client, server) = cable()?;
    let interface = interface_of(&server);
    if way == Way::Tcx && !server.host.run(|| has_tcx(&interface)) {
        unsupported("this kernel has no TCX");
    }
    let mut program = loaded();
    let before = server.host.run(|| qdiscs(&interface)).unwrap();
    server.host.run(|| {
        let hooks = attach(&interface, &mut program, how);
        assert_eq!(hooks.way(), way);
        assert_eq!(
            names(&programs_on(&interface).unwrap()),
            [
                (Direction::Ingress, way, "lab03_ingress"),
                (Direction::Egress, way, "lab03_egress")
            ]
        );
        assert_eq!(hooks.others().unwrap(), []);
        let pings = traffic::ping(&client.host, server.ipv4, 3, std::time::Duration::from_secs(10)).unwrap();
        assert!(pings.is_complete());
    });
    assert_eq!(counted(&program), (3, 3));
    server.host.run(|| {
        wait_until("it is gone", || programs_on(&interface).unwrap().is_empty());
        assert_eq!(qdiscs(&interface).unwrap(), before);
    });
    assert!(traffic::ping(&client.host, server.ipv4, 1, std::time::Duration::from_secs(10))?.is_complete());
    assert_eq!(counted(&program), (3, 3), "nothing is counted any more");
    Ok(())
}

fn programs_are_attached_by_tcx_and_gone_when_dropped() -> Result {
    is_attached_and_gone_when_dropped(TcAttach::Tcx, Way::Tcx)
}

fn programs_are_attached_by_clsact_and_gone_when_dropped() -> Result {
    is_attached_and_gone_when_dropped(TcAttach::Clsact, Way::Clsact)
}

fn auto_takes_tcx_where_the_kernel_has_it() -> Result {
    let (_client, server) = cable()?;
    let interface = interface_of(&server);
    let auto = server.host.run(|| {
        let auto = TcHooks::open(&interface, TcAttach::Auto).unwrap().way();
        match TcHooks::open(&interface, TcAttach::Tcx) {
            Ok(_) => assert_eq!(auto, Way::Tcx),
            Err(error) => {
                assert!(
                    error.to_string().contains("has no TCX, which came with Linux 6.6"),
                    "{error}"
                );
                assert_eq!(auto, Way::Clsact);
            }
        }
        // Nothing was attached, and so nothing is left of having looked.
        assert!(!qdiscs(&interface).unwrap().contains(&"clsact".into()));
        auto
    });
    if auto == Way::Clsact {
        falls_back("clsact: no TCX before Linux 6.6");
    }
    Ok(())
}

fn programs_of_others_are_listed_left_alone_and_still_run() -> Result {
    for ours in WAYS {
        for others in [Way::Tcx, Way::Clsact] {
            let (client, server) = cable()?;
            let interface = interface_of(&server);
            let wants_tcx = ours == TcAttach::Tcx || others == Way::Tcx;
            if wants_tcx && !server.host.run(|| has_tcx(&interface)) {
                continue;
            }
            let (mut program, mut other) = (loaded(), loaded());
            server.host.run(|| {
                let options = match others {
                    Way::Tcx => TcAttachOptions::TcxOrder(LinkOrder::default()),
                    Way::Clsact => {
                        tc::qdisc_add_clsact(&interface.name).unwrap();
                        TcAttachOptions::Netlink(NlOptions::default())
                    }
                };
                classifier(&mut other.ebpf, "lab03_ingress")
                    .attach_with_options(&interface.name, TcAttachType::Ingress, options)
                    .unwrap();
                let hooks = attach(&interface, &mut program, ours);
                let listed = hooks.others().unwrap();
                assert_eq!(names(&listed), [(Direction::Ingress, others, "lab03_ingress")]);
                let patience = std::time::Duration::from_secs(10);
                assert!(
                    traffic::ping(&client.host, server.ipv4, 2, patience)
                        .unwrap()
                        .is_complete()
                );
                assert_eq!(counted(&program), (2, 2), "{ours:?} ahead of {others:?}");
                assert_eq!(counted(&other), (2, 0), "{ours:?} leaves frames to {others:?}");
                drop(hooks);
                // A process that another test is starting at this moment has our links, too, until it runs its program.
                wait_until("ours are gone", || programs_on(&interface).unwrap() == listed);
                assert!(
                    traffic::ping(&client.host, server.ipv4, 1, patience)
                        .unwrap()
                        .is_complete()
                );
                assert_eq!(counted(&other), (3, 0));
                // Inside the host, where its filter is.
                drop(other);
            });
        }
    }
    Ok(())
}

fn a_clsact_of_others_stays() -> Result {
    let (_client, server) = cable()?;
    let interface = interface_of(&server);
    let mut program = loaded();
    server.host.run(|| {
        tc::qdisc_add_clsact(&interface.name).unwrap();
        let hooks = attach(&interface, &mut program, TcAttach::Clsact);
        drop(hooks);
        assert!(qdiscs(&interface).unwrap().contains(&"clsact".into()));
        assert_eq!(programs_on(&interface).unwrap(), []);
    });
    Ok(())
}

fn an_interface_that_has_gone_is_named() -> Result {
    for how in WAYS {
        let (_client, server) = cable()?;
        let interface = interface_of(&server);
        server.delete()?;
        let error = server.host.run(|| TcHooks::open(&interface, how).err()).unwrap();
        let is_told = "eth0 has gone: it was removed, renamed or moved while programs were being attached; start again with \
                       an interface that is there";
        // A kernel without TCX is told first: the interface does not matter then.
        let has_no_tcx = how == TcAttach::Tcx && error.to_string().contains("has no TCX, which came with Linux 6.6");
        assert!(has_no_tcx || error.to_string() == is_told, "{error}");
    }
    Ok(())
}

fn an_ingress_discipline_that_would_show_egress_programs_what_comes_in_is_refused() -> Result {
    let (_client, server) = cable()?;
    server.queue_by("ingress")?;
    let finished = finish(on(&server, &["--attach", "clsact", "--deny", "tcp/25"]));
    assert_eq!(
        finished.stderr.trim(),
        "error: eth0 has an `ingress` queueing discipline, which has no egress and keeps clsact away; remove it: `tc qdisc \
         del dev eth0 ingress`"
    );
    // What was attached before it was noticed is removed.
    let interface = interface_of(&server);
    server.host.run(|| assert_eq!(programs_on(&interface).unwrap(), []));
    Ok(())
}

fn a_filter_that_a_killed_run_has_left_is_told_with_its_mend() -> Result {
    let (_client, server) = cable()?;
    let start = || Running::start(on(&server, &["--attach", "clsact", "--stats-interval", "100ms"]));
    let killed = start()?;
    killed.wait_for("half_open=", PATIENCE)?;
    killed.signal(nix::sys::signal::Signal::SIGKILL)?;
    killed.wait(PATIENCE)?;
    let next = start()?;
    next.wait_for("half_open=", PATIENCE)?;
    let finished = next.interrupt(PATIENCE)?;
    let warnings: Vec<&str> = finished
        .stderr
        .lines()
        .filter(|line| line.starts_with("warn: "))
        .collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for warning in warnings {
        assert!(
            warning.ends_with(
                "already, of another run, which decides, too; if that one was killed, remove it: `tc qdisc del dev eth0 \
                 clsact`"
            ),
            "{warning}"
        );
    }
    Ok(())
}
