//! How the kernels cut a packed batch: tiles of query rows and tiles of keys, which are all that they know of it.
//!
//! The queries of a run of rows are counted over rows and, within a row, over the `sharing` heads that read one
//! key/value head: `m = row * sharing + head`.

use std::cmp::Reverse;

use super::AttentionLayout;

/// Queries of the score gradients that are kept together, for one key tile.
pub const STRIP: usize = 16;

/// Queries of a tile that sums kept score gradients.
pub const SUM_TILE: usize = 128;

/// `[segment start, first query, queries, prefix start, prefix length]` of each run of up to `tile` queries of a
/// segment, most keys first. Queries are counted from the segment's first row.
pub fn row_tiles(layout: &AttentionLayout, sharing: usize, tile: usize) -> Vec<[u32; 5]> {
    let mut tiles = Vec::new();
    for segment in layout.blocks().flat_map(|tree| tree.chunk_by(|a, b| a.own_start == b.own_start)) {
        let Some(block) = segment.last() else { continue };
        let queries = block.own_len * sharing;
        for first in (0..queries).step_by(tile) {
            let count = tile.min(queries - first);
            tiles.push([block.own_start, first, count, block.prefix_start, block.prefix_len]);
        }
    }
    tiles.sort_by_key(|[_, first, count, _, prefix]| Reverse(prefix + (first + count - 1) / sharing));
    tiles.into_iter().map(|tile| tile.map(|v| v as u32)).collect()
}

/// A run of keys of one segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyTile {
    pub start: usize,
    pub keys: usize,
    /// All rows from a key's own to this one see it: of a prompt's key, those of its completions too.
    pub rows_end: usize,
    /// First row of the tree, from which queries are counted.
    pub tree: usize,
    /// Where its score gradients lie among those of a key/value head, in strips.
    pub strips: usize,
}

impl KeyTile {
    fn numbers(&self) -> [u32; 5] {
        [self.start, self.keys, self.rows_end, self.tree, self.strips].map(|v| v as u32)
    }
}

/// The key tiles of a batch, and how the gradients of queries are summed over them.
#[derive(Clone, Debug)]
pub struct KeyTiles {
    /// In the order of the batch.
    tiles: Vec<KeyTile>,
    /// Of each tree: its key tiles, how many of them are its first segment's, and its rows.
    trees: Vec<Tree>,
    sharing: usize,
    /// Strips that the score gradients of one key/value head take.
    pub strips: usize,
}

#[derive(Clone, Debug)]
struct Tree {
    tiles: std::ops::Range<usize>,
    prompt: usize,
    start: usize,
    rows: usize,
}

impl KeyTiles {
    /// Tiles of up to `keys` keys, whose kernel takes the queries that see them `queries` at a time, from a multiple
    /// of that: their strips are all written.
    pub fn new(layout: &AttentionLayout, sharing: usize, keys: usize, queries: usize) -> Self {
        let (mut tiles, mut trees, mut strips) = (Vec::new(), Vec::new(), 0);
        for blocks in layout.blocks() {
            let (Some(first), Some(last)) = (blocks.first(), blocks.last()) else { continue };
            let (tree, tree_end, first_tile) = (first.start, last.start + last.rows, tiles.len());
            let mut prompt = 0;
            for segment in blocks.chunk_by(|a, b| a.own_start == b.own_start) {
                let (Some(head), Some(tail)) = (segment.first(), segment.last()) else { continue };
                let end = tail.start + tail.rows;
                let rows_end = if head.prefix_len == 0 { tree_end } else { end };
                for start in (head.start..end).step_by(keys) {
                    tiles.push(KeyTile { start, keys: keys.min(end - start), rows_end, tree, strips });
                    let first_query = (start - tree) * sharing / queries * queries;
                    let seen = ((rows_end - tree) * sharing - first_query).next_multiple_of(queries);
                    strips += seen / STRIP;
                }
                if head.prefix_len == 0 {
                    prompt = tiles.len() - first_tile;
                }
            }
            trees.push(Tree { tiles: first_tile..tiles.len(), prompt, start: tree, rows: tree_end - tree });
        }
        Self { tiles, trees, sharing, strips }
    }

    /// `[first key, keys, end of the rows that see them, tree, strips]` of each tile, in the order of the batch.
    pub fn in_order(&self) -> Vec<[u32; 5]> {
        self.tiles.iter().map(KeyTile::numbers).collect()
    }

    /// The same, most rows first.
    pub fn longest_first(&self) -> Vec<[u32; 5]> {
        let mut tiles = self.tiles.clone();
        tiles.sort_by_key(|tile| Reverse(tile.rows_end - tile.start));
        tiles.iter().map(KeyTile::numbers).collect()
    }

    /// `[tree, first query, queries, first key tile, key tiles, first key tile, key tiles]` of each run of up to
    /// [`SUM_TILE`] queries of a tree, most key tiles first. The key tiles, numbered in the order of the batch, are
    /// those that any of the queries sees: the prompt's, and then those of the completions that the queries are of.
    pub fn sum_tiles(&self) -> Vec<[u32; 7]> {
        let mut sums = Vec::new();
        for tree in &self.trees {
            let queries = tree.rows * self.sharing;
            let of_prompt = tree.tiles.start..tree.tiles.start + tree.prompt;
            let of_completions = of_prompt.end..tree.tiles.end;
            for first in (0..queries).step_by(SUM_TILE) {
                let count = SUM_TILE.min(queries - first);
                let first_row = tree.start + first / self.sharing;
                let last_row = tree.start + (first + count - 1) / self.sharing;
                let begun = |tile: &&KeyTile| tile.start <= last_row;
                let prompt = self.tiles[of_prompt.clone()].iter().take_while(begun).count();
                let of_completions = &self.tiles[of_completions.clone()];
                let past = of_completions.iter().take_while(|tile| tile.rows_end <= first_row).count();
                let own = of_completions[past..].iter().take_while(begun).count();
                sums.push([tree.start, first, count, of_prompt.start, prompt, of_prompt.end + past, own]);
            }
        }
        sums.sort_by_key(|[_, _, _, _, prompt, _, own]| Reverse(prompt + own));
        sums.into_iter().map(|tile| tile.map(|v| v as u32)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Segment;

    /// A prompt of 70 rows with completions of 5, 90 and 1, then a segment alone of 9; two heads share.
    fn tiles() -> KeyTiles {
        let lengths = [(70, None), (5, Some(0)), (90, Some(0)), (1, Some(0)), (9, None)];
        let mut segments: Vec<Segment> = Vec::new();
        for (len, prefix) in lengths {
            let start = segments.last().map_or(0, |s| s.start + s.len);
            segments.push(Segment { start, len, prefix });
        }
        KeyTiles::new(&AttentionLayout::new(&segments).unwrap(), 2, 64, 32)
    }

    #[test]
    fn a_sum_reads_the_key_tiles_that_its_queries_see_and_no_other() {
        let tiles = tiles();
        for [tree, first, count, prompt_first, prompt, own_first, own] in tiles.sum_tiles() {
            let rows = tree + first / 2..=tree + (first + count - 1) / 2;
            let listed: Vec<u32> =
                (prompt_first..prompt_first + prompt).chain(own_first..own_first + own).collect();
            let seen: Vec<u32> = (0..tiles.tiles.len() as u32)
                .filter(|i| {
                    let tile = tiles.tiles[*i as usize];
                    let (start, end) = (tile.start as u32, tile.rows_end as u32);
                    tile.tree as u32 == tree && start <= *rows.end() && end > *rows.start()
                })
                .collect();
            assert_eq!(listed, seen, "queries {first}.. of the tree at {tree}");
        }
    }

    #[test]
    fn strips_of_key_tiles_lie_one_after_the_other() {
        let tiles = tiles();
        // Queries 0 and 128 to 332, 140 to 150, 150 and 278 to 330, 330 to 332, and 0 to 18, each in whole 32s.
        let strips = [22, 14, 2, 14, 6, 2, 2];
        let mut next = 0;
        for (tile, strips) in tiles.tiles.iter().zip(strips) {
            assert_eq!(tile.strips, next, "{tile:?}");
            next += strips;
        }
        assert_eq!((tiles.tiles.len(), tiles.strips), (strips.len(), next));
    }
}
