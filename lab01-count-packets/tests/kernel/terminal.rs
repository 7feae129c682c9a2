//! The command on a terminal: a pseudo-terminal of 60 columns and 12 rows, as a user would sit in front of it.

use testbed::{End, Host, Result, Terminal, traffic::Flood};

use crate::lab::{self, PATIENCE};

testbed::listed_tests![
    the_table_is_redrawn_in_place_and_cut_to_the_terminal,
    log_lines_stand_above_the_table,
    ctrl_c_typed_on_the_terminal_ends_it_politely,
];

const COLUMNS: u16 = 60;
const ROWS: u16 = 12;

/// What crossterm writes to go up and to clear everything below.
const CLEAR_BELOW: &str = "\x1b[J";

/// The command with a terminal for its input, its output and its errors, when it has attached.
fn on_terminal(end: &End) -> Result<Terminal> {
    let terminal = Terminal::start(lab::on(end, &["--interval", "100ms"]), COLUMNS, ROWS)?;
    terminal.wait_for("No packet has arrived yet.", PATIENCE)?;
    Ok(terminal)
}

/// Types Ctrl-C; returns all that was shown until it had ended with success.
fn ctrl_c(mut terminal: Terminal) -> Result<String> {
    terminal.type_in("\x03")?;
    let (status, shown) = terminal.wait(PATIENCE)?;
    assert!(status.success(), "{shown}");
    Ok(shown)
}

fn cable() -> Result<(End, End)> {
    let link = Host::new("client")?.join(&Host::new("server")?)?;
    Ok((link.left, link.right))
}

fn the_table_is_redrawn_in_place_and_cut_to_the_terminal() -> Result {
    let (client, server) = cable()?;
    let terminal = on_terminal(&server)?;
    // More sources than rows, with rows longer than the terminal is wide.
    Flood::new(&client, &server).ipv6().sources(30).count(300).send()?;
    terminal.wait_for(": 300 packets", PATIENCE)?;
    let shown = ctrl_c(terminal)?;

    let drawings: Vec<&str> = shown.split(CLEAR_BELOW).collect();
    assert!(drawings.len() > 2, "{shown:?}");
    for drawing in &drawings {
        // What is left of the next "go up" belongs to the next drawing.
        let lines: Vec<&str> = drawing.lines().filter(|line| !line.contains('\x1b')).collect();
        assert!(
            lines.len() < usize::from(ROWS),
            "{} lines on {ROWS} rows: {drawing:?}",
            lines.len()
        );
        let widest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(
            widest <= usize::from(COLUMNS),
            "{widest} columns of {COLUMNS}: {drawing:?}"
        );
    }
    let last = drawings.last().unwrap();
    assert!(
        last.starts_with("eth0, native XDP, ") && last.contains(": 300 packets, 23.4 KiB"),
        "{last:?}"
    );
    assert!(last.contains("2001:db8:99::1 "), "{last:?}");
    // Each drawing goes up by as many lines as the one before had.
    for pair in drawings.windows(2) {
        let lines = pair[0].matches("\r\n").count();
        assert!(
            pair[0].contains(&format!("\x1b[{lines}A")),
            "{lines} lines up: {:?}",
            pair[0]
        );
    }
    Ok(())
}

fn log_lines_stand_above_the_table() -> Result {
    let (client, server) = cable()?;
    let terminal = on_terminal(&server)?;
    client
        .host
        .inject("eth0", &client.frame_to(&server).ether_type(0x0800).build())?;
    terminal.wait_for("ipv4-truncated, 14 bytes", PATIENCE)?;
    let shown = ctrl_c(terminal)?;
    let line = format!(
        "{CLEAR_BELOW}warn: first malformed packet of its kind on this CPU: ipv4-truncated, 14 bytes\r\neth0, native"
    );
    assert!(shown.contains(&line), "{shown:?}");
    Ok(())
}

fn ctrl_c_typed_on_the_terminal_ends_it_politely() -> Result {
    let (_client, server) = cable()?;
    let terminal = on_terminal(&server)?;
    let shown = ctrl_c(terminal)?;
    assert!(shown.ends_with("No packet has arrived yet.\r\n"), "{shown:?}");
    assert!(!server.has_xdp()?);
    Ok(())
}
