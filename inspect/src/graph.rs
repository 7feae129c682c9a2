//! Control-flow graphs for Graphviz: basic blocks as nodes, jumps as edges, functions as boxes around them.

use std::{collections::BTreeSet, fmt::Write as _, iter, ops::Range};

use aya_obj::generated::bpf_insn;

use crate::{
    disassembly::{self, Flow},
    object_file::{Linked, ObjectFile},
};

/// The graphs of these programs as one Graphviz file.
pub fn dot(object: &ObjectFile, programs: &[Linked]) -> String {
    let mut text = String::from(
        "digraph control_flow {\n  node [shape=box fontname=monospace fontsize=10]\n  edge [fontname=monospace fontsize=9]\n",
    );
    for (number, program) in programs.iter().enumerate() {
        Drawing {
            object,
            program,
            prefix: format!("p{number}"),
        }
        .draw(&mut text);
    }
    text.push_str("}\n");
    text
}

/// Instructions that run one after the other, entered at the first and left at the last only.
#[derive(Debug, PartialEq, Eq)]
struct Block {
    instructions: Range<usize>,
    next: Vec<Edge>,
}

/// Where control may go from a block.
#[derive(Debug, PartialEq, Eq)]
struct Edge {
    to: usize,
    label: &'static str,
}

/// The basic blocks of the function whose instructions lie at `function`.
fn blocks(instructions: &[bpf_insn], function: &Range<usize>) -> Vec<Block> {
    let mut starts = BTreeSet::from([function.start]);
    for index in places(instructions, function) {
        let next = index + disassembly::width(instructions[index]);
        match disassembly::flow(instructions[index]) {
            Flow::On => continue,
            Flow::Branch(distance) | Flow::Jump(distance) => starts.extend(target(index, distance)),
            Flow::Exit => {}
        }
        starts.insert(next);
    }
    let starts: Vec<_> = starts.into_iter().filter(|start| function.contains(start)).collect();
    starts
        .iter()
        .enumerate()
        .map(|(number, start)| {
            let end = starts.get(number + 1).copied().unwrap_or(function.end);
            Block {
                instructions: *start..end,
                next: edges(instructions, *start..end, function),
            }
        })
        .collect()
}

fn edges(instructions: &[bpf_insn], block: Range<usize>, function: &Range<usize>) -> Vec<Edge> {
    let Some(last) = places(instructions, &block).last() else {
        return Vec::new();
    };
    let goes_to = |to: Option<usize>, label| to.filter(|to| function.contains(to)).map(|to| Edge { to, label });
    let edges = match disassembly::flow(instructions[last]) {
        Flow::On => [goes_to(Some(block.end), ""), None],
        Flow::Jump(distance) => [goes_to(target(last, distance), ""), None],
        Flow::Branch(distance) => [goes_to(target(last, distance), "yes"), goes_to(Some(block.end), "no")],
        Flow::Exit => [None, None],
    };
    edges.into_iter().flatten().collect()
}

fn target(index: usize, distance: i64) -> Option<usize> {
    (index + 1).checked_add_signed(isize::try_from(distance).ok()?)
}

/// The places of the instructions in a range; a wide one takes two places and has one.
fn places<'a>(instructions: &'a [bpf_insn], range: &Range<usize>) -> impl Iterator<Item = usize> + use<'a> {
    let Range { start, end } = range.clone();
    let behind = |index: &usize| Some(index + disassembly::width(*instructions.get(*index)?));
    iter::successors(Some(start), behind).take_while(move |index| *index < end)
}

/// One program being drawn.
struct Drawing<'a> {
    object: &'a ObjectFile,
    program: &'a Linked,
    /// What its nodes' names start with.
    prefix: String,
}

impl Drawing<'_> {
    fn draw(&self, text: &mut String) {
        let instructions = &self.program.function.instructions;
        let starts = self.program.function_starts();
        for (number, start) in starts.iter().enumerate() {
            let end = starts.get(number + 1).copied().unwrap_or(instructions.len());
            let title = self.function_name(*start);
            // Writing to a string cannot fail.
            writeln!(text, "  subgraph cluster_{}_{start} {{", self.prefix).ok();
            writeln!(text, "    label={}", quoted(&title)).ok();
            for block in blocks(instructions, &(*start..end)) {
                self.draw_block(&block, text);
            }
            text.push_str("  }\n");
        }
    }

    fn draw_block(&self, block: &Block, text: &mut String) {
        let start = block.instructions.start;
        let mut label = String::new();
        let mut place = None;
        for index in places(&self.program.function.instructions, &block.instructions) {
            let here = self.source_place(index);
            if here != place {
                label.extend(here.iter().map(|here| format!("{here}\n")));
                place = here;
            }
            writeln!(label, "{index:5}: {}", self.instruction(index)).ok();
        }
        writeln!(text, "    {}_{start} [label={}]", self.prefix, quoted_left(&label)).ok();
        for edge in &block.next {
            let label = if edge.label.is_empty() {
                String::new()
            } else {
                format!(" [label={}]", edge.label)
            };
            writeln!(
                text,
                "    {}_{start} -> {}_{}{label}",
                self.prefix, self.prefix, edge.to
            )
            .ok();
        }
    }

    fn instruction(&self, index: usize) -> String {
        let instructions = &self.program.function.instructions;
        disassembly::text(
            instructions[index],
            instructions.get(index + 1).copied(),
            |standin| self.object.map_of_standin(standin).map(str::to_owned),
            |distance| Some(self.function_name(target(index, distance)?)),
        )
    }

    /// `headers.rs:42  let version = …;`
    fn source_place(&self, index: usize) -> Option<String> {
        let place = self.object.debug_info.as_ref()?.place(&self.program.function, index)?;
        let file = place.file.rsplit('/').next().unwrap_or(&place.file);
        Some(format!("{file}:{}  {}", place.line, place.text).trim_end().to_owned())
    }

    fn function_name(&self, start: usize) -> String {
        if start == 0 {
            return self.program.name.clone();
        }
        self.object
            .debug_info
            .as_ref()
            .and_then(|info| info.function_name(&self.program.function, start))
            .unwrap_or_else(|| format!("function at {start}"))
    }
}

/// A string of Graphviz's language.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The same, its lines flush left.
fn quoted_left(text: &str) -> String {
    quoted(text).replace('\n', "\\l")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instruction(code: u8, off: i16) -> bpf_insn {
        // SAFETY: an instruction is plain numbers, for which zero is a value.
        let mut instruction: bpf_insn = unsafe { std::mem::zeroed() };
        instruction.code = code;
        instruction.off = off;
        instruction
    }

    const MOVE: u8 = 0xb7;
    const GO: u8 = 0x05;
    const IF_EQUAL: u8 = 0x15;
    const EXIT: u8 = 0x95;
    const LOAD_64_BIT: u8 = 0x18;

    fn block(instructions: Range<usize>, next: &[(usize, &'static str)]) -> Block {
        let next = next.iter().map(|(to, label)| Edge { to: *to, label });
        Block {
            instructions,
            next: next.collect(),
        }
    }

    #[test]
    fn a_straight_function_is_one_block() {
        let instructions = [instruction(MOVE, 0), instruction(MOVE, 0), instruction(EXIT, 0)];
        assert_eq!(blocks(&instructions, &(0..3)), [block(0..3, &[])]);
    }

    #[test]
    fn a_branch_makes_two_ways_that_meet_again() {
        let instructions = [
            instruction(IF_EQUAL, 2),
            instruction(MOVE, 0),
            instruction(GO, 1),
            instruction(MOVE, 0),
            instruction(EXIT, 0),
        ];
        assert_eq!(
            blocks(&instructions, &(0..5)),
            [
                block(0..1, &[(3, "yes"), (1, "no")]),
                block(1..3, &[(4, "")]),
                block(3..4, &[(4, "")]),
                block(4..5, &[]),
            ]
        );
    }

    #[test]
    fn a_loop_goes_back() {
        let instructions = [instruction(MOVE, 0), instruction(IF_EQUAL, -2), instruction(EXIT, 0)];
        assert_eq!(
            blocks(&instructions, &(0..3)),
            [block(0..2, &[(0, "yes"), (2, "no")]), block(2..3, &[])]
        );
    }

    #[test]
    fn the_second_half_of_a_wide_instruction_is_no_instruction() {
        // Were the half read as one, its code, here that of `exit`, would end the block.
        let instructions = [
            instruction(LOAD_64_BIT, 0),
            instruction(EXIT, 0),
            instruction(MOVE, 0),
            instruction(EXIT, 0),
        ];
        assert_eq!(blocks(&instructions, &(0..4)), [block(0..4, &[])]);
    }

    #[test]
    fn functions_behind_the_program_are_blocks_of_their_own() {
        let instructions = [
            instruction(MOVE, 0),
            instruction(EXIT, 0),
            instruction(MOVE, 0),
            instruction(EXIT, 0),
        ];
        assert_eq!(blocks(&instructions, &(2..4)), [block(2..4, &[])]);
    }

    #[test]
    fn labels_are_quoted_for_graphviz() {
        assert_eq!(quoted_left("a \"b\"\\\nc\n"), r#""a \"b\"\\\lc\l""#);
    }
}
