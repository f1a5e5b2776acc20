// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"cmp"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/meshd/meshd/internal/mesh"
)

// settings are those of the cluster that may be changed while it runs. Nodes
// tell each other theirs, and all follow the highest generation: an edit on one
// node reaches the others without anybody going round.
//
// Not everybody has to tell the same. A node speaks up if nobody else has what
// it uses, so that in a cluster at peace one or two do.
type settings struct {
	Generation    uint64
	Mode          mesh.Mode
	Encapsulation string
	Gateways      int
}

func settingsOf(c mesh.Cluster) settings {
	return settings{c.Generation, c.Mode, c.Encapsulation, c.Gateways}
}

// in returns a cluster with these settings instead of its own.
func (s settings) in(c mesh.Cluster) mesh.Cluster {
	c.Generation, c.Mode, c.Encapsulation, c.Gateways = s.Generation, s.Mode, s.Encapsulation, s.Gateways
	return c
}

func (s settings) String() string {
	return fmt.Sprintf("mode %s, encapsulation %s, gateways %d", s.Mode, s.Encapsulation, s.Gateways)
}

// check holds for settings that are to be told.
func (s settings) check() error {
	switch {
	case s.Generation > mesh.MaxGeneration:
		return fmt.Errorf("cluster.generation %d is too high: the highest is %d", s.Generation, mesh.MaxGeneration)
	case s.Mode != mesh.ModeFull && s.Mode != mesh.ModeLocation && s.Mode != mesh.ModeCross:
		return fmt.Errorf("cluster.mode %q", s.Mode)
	case s.Encapsulation != mesh.EncapsulationNever && s.Encapsulation != mesh.EncapsulationCrossSubnet && s.Encapsulation != mesh.EncapsulationAlways:
		return fmt.Errorf("cluster.encapsulation %q", s.Encapsulation)
	case s.Gateways < 1 || s.Gateways > maxSeats:
		return fmt.Errorf("cluster.gateways %d", s.Gateways)
	}
	return nil
}

// told is what a node says that its settings are, as the content of an object.
type told struct {
	settings
	identity ed25519.PublicKey
	number   uint64 // of the object; a generation may be told again, with other content
	ranges   uint64 // hash of the address settings, see mesh.Cluster.Hash
	by       uint64 // sequence of the author's record at that time, with which it is forgotten
}

type wireTold struct {
	Identity      []byte `cbor:"1,keyasint"`
	Number        uint64 `cbor:"2,keyasint"`
	Ranges        uint64 `cbor:"3,keyasint"`
	By            uint64 `cbor:"4,keyasint"`
	Generation    uint64 `cbor:"5,keyasint"`
	Mode          string `cbor:"6,keyasint"`
	Encapsulation string `cbor:"7,keyasint"`
	Gateways      int64  `cbor:"8,keyasint"`
}

func (t told) author() ed25519.PublicKey { return t.identity }
func (t told) subject() mesh.ID          { return mesh.IDOf(t.identity) }
func (t told) sequence() uint64          { return t.number }

func (t told) covered(buried map[mesh.ID]uint64) bool { return t.by <= buried[t.subject()] }

func encodeTold(t told) ([]byte, error) {
	payload, err := encoding.Marshal(wireTold{
		t.identity, t.number, t.ranges, t.by, t.Generation, string(t.Mode), t.Encapsulation, int64(t.Gateways),
	})
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	return payload, nil
}

func decodeTold(payload []byte) (body, error) {
	var w wireTold
	if err := decoding.Unmarshal(payload, &w); err != nil {
		return nil, fmt.Errorf("decode settings: %w", err)
	}
	switch {
	case len(w.Identity) != ed25519.PublicKeySize:
		return nil, fmt.Errorf("decode settings: an identity of %d bytes", len(w.Identity))
	case w.Number == 0 || w.Number > maxSequence || w.By == 0 || w.By > maxSequence:
		return nil, fmt.Errorf("decode settings: number %d, by record %d", w.Number, w.By)
	case w.Gateways < 1 || w.Gateways > maxSeats: // before it becomes an int
		return nil, errors.New("decode settings: number of gateways")
	}
	s := settings{w.Generation, mesh.Mode(w.Mode), w.Encapsulation, int(w.Gateways)}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("decode settings: %w", err)
	}
	return told{s, w.Identity, w.Number, w.Ranges, w.By}, nil
}

// told returns what nodes say of their settings whose records count, for
// clusters with these ranges.
func (s *store) told(ranges uint64) []told {
	var all []told
	for _, o := range s.rest {
		t, ok := o.body.(told)
		if !ok || t.ranges != ranges {
			continue
		}
		if r, ok := s.objects[recordKey(o.key.author)].body.(recordBody); ok && r.Settings == ranges {
			all = append(all, t)
		}
	}
	return all
}

// effective are the settings in use: our file's, unless others have told us of
// a later generation.
func (g *Gossip) effective() settings {
	if own := settingsOf(g.cluster); g.adopted.Generation <= own.Generation {
		return own
	}
	return g.adopted
}

// agree adopts the highest generation, and tells ours if nobody does. A newcomer
// first takes in all that some member knows: of two that tell different things, it
// may have heard one before the other, and of nodes that start together, all would
// tell theirs.
func (g *Gossip) agree() {
	var (
		news []object
		err  error
	)
	g.mu.Lock()
	before := g.effective()
	if g.merged {
		g.adopt()
		news, err = g.tell()
	}
	changed := g.effective() != before
	g.mu.Unlock()
	if err != nil {
		g.log.at(slog.LevelError, "tell cluster settings", "err", err)
	}
	if changed {
		g.signal()
	}
	if len(news) > 0 {
		g.spread(news)
	}
}

// adopt takes over the highest generation that is told, if it is above ours
// and all who tell it agree. What was adopted stays so until a higher one comes
// or our own file has caught up: nodes that came from it are not to go back
// when the one that told them is gone.
func (g *Gossip) adopt() {
	all := g.store.told(g.ranges)
	if len(all) == 0 {
		return
	}
	top := slices.MaxFunc(all, func(a, b told) int { return cmp.Compare(a.Generation, b.Generation) }).settings
	agreed := !slices.ContainsFunc(all, func(t told) bool { return t.Generation == top.Generation && t.settings != top })
	if agreed && top.Generation > g.effective().Generation {
		g.adopted = top
	}
}

// tell puts our settings into the store if nobody tells them, or if we have
// told others for the same generation.
func (g *Gossip) tell() ([]object, error) {
	ours := g.effective()
	key := objectKey{kindSettings, g.self, g.self}
	last, spoke := g.store.objects[key].body.(told)
	contradicts := spoke && last.Generation == ours.Generation && last.settings != ours
	if _, ok := g.store.objects[recordKey(g.self)]; !ok || !contradicts &&
		slices.ContainsFunc(g.store.told(g.ranges), func(t told) bool { return t.settings == ours }) {
		return nil, nil
	}
	payload, err := encodeTold(told{
		ours, g.identity.Public().(ed25519.PublicKey), g.store.highest[key] + 1, g.ranges, g.store.highest[recordKey(g.self)],
	})
	if err != nil {
		return nil, err
	}
	o, err := g.sign(kindSettings, payload)
	if err != nil {
		return nil, err
	}
	if g.store.put(o) != fresh {
		return nil, errors.New("the store is full")
	}
	return []object{o}, nil
}

// settingsProblems say which nodes do not follow, and whether we are one whose
// file is old.
func (g *Gossip) settingsProblems() []mesh.Problem {
	ours, file := g.effective(), settingsOf(g.cluster)
	differing := make(map[settings][]string)
	for _, t := range g.store.told(g.ranges) {
		if t.settings != ours && t.Generation >= ours.Generation {
			differing[t.settings] = append(differing[t.settings], g.nameOf(t.subject()))
		}
	}
	var problems []mesh.Problem
	for s, names := range differing {
		slices.Sort(names)
		problems = append(problems, mesh.Problem{
			Kind: ProblemSettings, Node: names[0],
			Text: fmt.Sprintf("cluster.generation %d is %s here, %s on %s",
				s.Generation, hereUnder(ours, s.Generation), s, strings.Join(names, ", ")),
			Advice: "write the settings that are to hold on one node, with a higher cluster.generation, and restart or reload meshd there",
		})
	}
	if file.Generation < ours.Generation {
		problems = append(problems, mesh.Problem{
			Kind: ProblemSettings, Node: g.nameOf(g.self),
			Text: fmt.Sprintf("this node's configuration has cluster.generation %d; it follows generation %d: %s", file.Generation, ours.Generation, ours),
			Advice: fmt.Sprintf("write generation: %d, mode: %s, encapsulation: %s and gateways: %d under cluster: here",
				ours.Generation, ours.Mode, ours.Encapsulation, ours.Gateways),
		})
	}
	return problems
}

// hereUnder is what a generation is for us.
func hereUnder(ours settings, generation uint64) string {
	if ours.Generation == generation {
		return ours.String()
	}
	return "not known"
}
