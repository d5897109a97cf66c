// Verify an exported log with golang.org/x/mod/sumdb: DIR VKEY [INDEX].
// With INDEX also the proofs that the tests leave beside it: entry, inclusion, consistency with old.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

var folder string

func must(what string, err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, what, err)
		os.Exit(1)
	}
}

func read(name string) []byte {
	data, err := os.ReadFile(filepath.Join(folder, name))
	must(name, err)
	return data
}

func head(name string, verifier note.Verifier) tlog.Tree {
	signed, err := note.Open(read(name), note.VerifierList(verifier))
	must(name, err)
	lines := strings.Split(signed.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	must("size", err)
	root, err := base64.StdEncoding.DecodeString(lines[2])
	must("root", err)
	tree := tlog.Tree{N: size}
	copy(tree.Hash[:], root)
	return tree
}

func hashes(name string) []tlog.Hash {
	var found []tlog.Hash
	for _, line := range strings.Fields(string(read(name))) {
		raw, err := hex.DecodeString(line)
		must(name, err)
		var hash tlog.Hash
		copy(hash[:], raw)
		found = append(found, hash)
	}
	return found
}

type tiles struct{}

func (tiles) Height() int { return 8 }

func (tiles) SaveTiles([]tlog.Tile, [][]byte) {}

func (tiles) ReadTiles(wanted []tlog.Tile) ([][]byte, error) {
	var found [][]byte
	for _, tile := range wanted {
		// Go writes the height into the path; tlog-tiles does not.
		found = append(found, read(strings.Replace(tile.Path(), "tile/8/", "tile/", 1)))
	}
	return found, nil
}

func proofs(verifier note.Verifier, tree tlog.Tree, reader tlog.HashReader) {
	index, err := strconv.ParseInt(os.Args[3], 10, 64)
	must("index", err)
	old, entry := head("old", verifier), tlog.RecordHash(read("entry"))
	must("inclusion", tlog.CheckRecord(hashes("inclusion"), tree.N, tree.Hash, index, entry))
	fmt.Print(" inclusion")
	must("consistency", tlog.CheckTree(hashes("consistency"), tree.N, tree.Hash, old.N, old.Hash))
	fmt.Print(" consistency")
	proof, err := tlog.ProveRecord(tree.N, index, reader)
	must("prove", err)
	must("proof", tlog.CheckRecord(proof, tree.N, tree.Hash, index, entry))
}

func main() {
	folder = os.Args[1]
	verifier, err := note.NewVerifier(os.Args[2])
	must("vkey", err)
	tree := head("checkpoint", verifier)
	fmt.Print("checkpoint")
	reader := tlog.TileHashReader(tree, tiles{})
	root, err := tlog.TreeHash(tree.N, reader)
	must("tree", err)
	if root != tree.Hash {
		must("root", fmt.Errorf("of the tiles is %v", root))
	}
	for start := int64(0); start < tree.N; start += 256 {
		tile := tlog.Tile{H: 8, L: 0, N: start / 256, W: 256}
		if tree.N-start < 256 {
			tile.W = int(tree.N - start)
		}
		leaves := read(strings.Replace(tile.Path(), "tile/8/", "tile/", 1))
		bundle := read(strings.Replace(tile.Path(), "tile/8/0/", "tile/entries/", 1))
		for ; len(leaves) > 0; leaves = leaves[32:] {
			size := int(binary.BigEndian.Uint16(bundle))
			hash := tlog.RecordHash(bundle[2 : 2+size])
			if !bytes.Equal(hash[:], leaves[:32]) {
				must("bundle", fmt.Errorf("%v differs from its tile", tile))
			}
			bundle = bundle[2+size:]
		}
	}
	fmt.Print(" tiles")
	if len(os.Args) > 3 {
		proofs(verifier, tree, reader)
	}
	fmt.Println()
}
