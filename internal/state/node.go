// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"os"

	"github.com/meshd/meshd/internal/atomicfile"
	"github.com/meshd/meshd/internal/mesh"
)

// Node is what a node has announced about itself and must keep after a restart.
type Node struct {
	Boot     uint64     // number of the daemon's last start; it only rises
	Sequence uint64     // the last one of its own record
	Claim    mesh.Claim // Slot is mesh.None for none
	Ready    bool       // it has been ready with this claim, so there may be pods
	Adopted  Adopted    // settings in effect instead of its own file's; zero for none
	// Duplicate means that the daemon stopped because this identity ran on another host, too.
	Duplicate bool
}

// Adopted are another node's settings with a higher generation.
type Adopted struct {
	Generation    uint64
	Mode          mesh.Mode
	Encapsulation mesh.Encapsulation
	Gateways      int
}

// Node returns the state that SaveNode has written last, or a Node without a claim if there
// is none. The error wraps ErrDamaged or ErrNewer if the content is the cause.
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
		return Node{}, fmt.Errorf("read node state %s: %w; %s", d.file(NodeFile), err, advice(err, "the node claims a new slot"))
	}
	return n, nil
}

// SaveNode writes the state to disk, so that it survives a crash. After an error the old
// state is still there.
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

// nodeFile is the content of node.json. The pointers tell missing keys, which are required,
// from zero.
type nodeFile struct {
	Version  int        `json:"version"`
	Boot     *uint64    `json:"boot"`
	Sequence *uint64    `json:"sequence"`
	Claim    *claimFile `json:"claim"` // null for none
	// Adopted is null or missing if there are none.
	Adopted   *adoptedFile `json:"adopted"`
	Duplicate bool         `json:"duplicate,omitempty"`
}

type claimFile struct {
	Slot      *int    `json:"slot"`
	Confirmed bool    `json:"confirmed"` // missing in files of versions whose claims had no class
	Time      *int64  `json:"time"`      // milliseconds since 1970
	Since     *uint64 `json:"since"`     // sequence
	Ready     *bool   `json:"ready"`
}

type adoptedFile struct {
	Generation    uint64             `json:"generation"`
	Mode          mesh.Mode          `json:"mode"`
	Encapsulation mesh.Encapsulation `json:"encapsulation"`
	Gateways      int                `json:"gateways"`
}

func encodeNode(n Node) ([]byte, error) {
	f := nodeFile{Version: version, Boot: &n.Boot, Sequence: &n.Sequence, Duplicate: n.Duplicate}
	if n.Claim.Slot != mesh.None {
		f.Claim = &claimFile{Slot: &n.Claim.Slot, Confirmed: n.Claim.Confirmed, Time: &n.Claim.Time, Since: &n.Claim.Since, Ready: &n.Ready}
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
		return Node{}, fmt.Errorf("%w: boot or sequence is missing", ErrDamaged)
	}
	n := Node{Boot: *f.Boot, Sequence: *f.Sequence, Claim: mesh.Claim{Slot: mesh.None}, Duplicate: f.Duplicate}
	if f.Adopted != nil {
		n.Adopted = Adopted(*f.Adopted)
		if a := n.Adopted; a.Generation == 0 || a.Mode == "" || a.Encapsulation == "" || a.Gateways < 1 {
			return Node{}, fmt.Errorf("%w: adopted settings must have generation, mode, encapsulation and gateways", ErrDamaged)
		}
	}
	if f.Claim == nil {
		return n, nil
	}
	c := *f.Claim
	if c.Slot == nil || c.Time == nil || c.Since == nil || c.Ready == nil {
		return Node{}, fmt.Errorf("%w: a claim must have slot, time, since and ready", ErrDamaged)
	}
	if *c.Slot < 0 {
		return Node{}, fmt.Errorf("%w: slot %d", ErrDamaged, *c.Slot)
	}
	n.Claim = mesh.Claim{Slot: *c.Slot, Confirmed: c.Confirmed, Time: *c.Time, Since: *c.Since}
	n.Ready = *c.Ready
	return n, nil
}
