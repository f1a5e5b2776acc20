// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"os"

	"github.com/meshd/meshd/internal/atomicfile"
	"github.com/meshd/meshd/internal/mesh"
)

// Node is what a node has told others of itself and has to stand by after a
// restart.
type Node struct {
	Boot     uint64     // the number of the daemon's last start, higher than those of all before
	Sequence uint64     // the last one that its own record had
	Claim    mesh.Claim // Slot is mesh.None for none
	Ready    bool       // it has been ready with this claim, so there may be pods
	Adopted  Adopted    // settings that it follows instead of its own file's; zero for none
}

// Adopted are the settings of another node whose generation is higher.
type Adopted struct {
	Generation    uint64
	Mode          mesh.Mode
	Encapsulation string
	Gateways      int
}

// Node returns what SaveNode wrote last, or a Node without a claim if there was
// nothing. The error wraps ErrDamaged or ErrNewer if it is due to the content.
func (d *Dir) Node() (Node, error) {
	data, err := os.ReadFile(d.file(NodeFile))
	if errors.Is(err, os.ErrNotExist) {
		return Node{Claim: mesh.Claim{Slot: mesh.None}}, nil
	}
	if err != nil {
		return Node{}, fmt.Errorf("read node state: %w", err)
	}
	n, err := decodeNode(data)
	if err != nil {
		return Node{}, fmt.Errorf("read node state %s: %w; %s", d.file(NodeFile), err, wayOut(err, "the node claims a new slot"))
	}
	return n, nil
}

// SaveNode makes n what Node returns, now and after a crash. On an error, the
// old state stays.
func (d *Dir) SaveNode(n Node) error {
	data, err := encodeNode(n)
	if err != nil {
		return fmt.Errorf("save node state: %w", err)
	}
	if err := atomicfile.Write(d.file(NodeFile), data, fileMode); err != nil {
		return fmt.Errorf("save node state: %w", err)
	}
	return nil
}

// nodeFile is the content of node.json. All keys are always there.
type nodeFile struct {
	Version  int        `json:"version"`
	Boot     *uint64    `json:"boot"`
	Sequence *uint64    `json:"sequence"`
	Claim    *claimFile `json:"claim"` // null for none
	// Adopted is null for none, and a file without it has none.
	Adopted *adoptedFile `json:"adopted"`
}

type claimFile struct {
	Slot  *int    `json:"slot"`
	Time  *int64  `json:"time"`  // milliseconds since 1970
	Since *uint64 `json:"since"` // sequence
	Ready *bool   `json:"ready"`
}

type adoptedFile struct {
	Generation    uint64    `json:"generation"`
	Mode          mesh.Mode `json:"mode"`
	Encapsulation string    `json:"encapsulation"`
	Gateways      int       `json:"gateways"`
}

func encodeNode(n Node) ([]byte, error) {
	f := nodeFile{Version: version, Boot: &n.Boot, Sequence: &n.Sequence}
	if n.Claim.Slot != mesh.None {
		f.Claim = &claimFile{Slot: &n.Claim.Slot, Time: &n.Claim.Time, Since: &n.Claim.Since, Ready: &n.Ready}
	}
	if n.Adopted != (Adopted{}) {
		f.Adopted = (*adoptedFile)(&n.Adopted)
	}
	return encodeJSON(f)
}

func decodeNode(data []byte) (Node, error) {
	var f nodeFile
	if err := decodeJSON(data, &f); err != nil {
		return Node{}, err
	}
	if f.Boot == nil || f.Sequence == nil {
		return Node{}, fmt.Errorf("%w: boot and sequence must be there", ErrDamaged)
	}
	n := Node{Boot: *f.Boot, Sequence: *f.Sequence, Claim: mesh.Claim{Slot: mesh.None}}
	if f.Adopted != nil {
		n.Adopted = Adopted(*f.Adopted)
		if a := n.Adopted; a.Generation == 0 || a.Mode == "" || a.Encapsulation == "" || a.Gateways < 1 {
			return Node{}, fmt.Errorf("%w: adopted settings have generation, mode, encapsulation and gateways", ErrDamaged)
		}
	}
	if f.Claim == nil {
		return n, nil
	}
	c := *f.Claim
	if c.Slot == nil || c.Time == nil || c.Since == nil || c.Ready == nil {
		return Node{}, fmt.Errorf("%w: a claim has slot, time, since and ready", ErrDamaged)
	}
	if *c.Slot < 0 {
		return Node{}, fmt.Errorf("%w: slot %d", ErrDamaged, *c.Slot)
	}
	n.Claim = mesh.Claim{Slot: *c.Slot, Time: *c.Time, Since: *c.Since}
	n.Ready = *c.Ready
	return n, nil
}
