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

// settings are the cluster settings that may be changed while the cluster runs. Nodes
// announce theirs, and all follow the highest generation: an edit on one node reaches all
// others by itself.
//
// Not every node has to announce the same settings. A node announces its own only if no
// other node has announced them, so that usually one or two do.
type settings struct {
	Generation    uint64
	Mode          mesh.Mode
	Encapsulation mesh.Encapsulation
	Gateways      int
}

func settingsOf(c mesh.Cluster) settings {
	return settings{c.Generation, c.Mode, c.Encapsulation, c.Gateways}
}

// applyTo returns a cluster with these settings instead of its own.
func (s settings) applyTo(c mesh.Cluster) mesh.Cluster {
	c.Generation, c.Mode, c.Encapsulation, c.Gateways = s.Generation, s.Mode, s.Encapsulation, s.Gateways
	return c
}

func (s settings) String() string {
	return fmt.Sprintf("mode %s, encapsulation %s, gateways %d", s.Mode, s.Encapsulation, s.Gateways)
}

// check checks settings that are to be announced.
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

// settingsBody is what a node announces as its settings, as the content of an object.
type settingsBody struct {
	settings
	identity ed25519.PublicKey
	number   uint64 // of the object; a generation may be announced again with other content
	ranges   uint64 // hash of the address settings, see mesh.Cluster.Hash
	by       uint64 // sequence of the author's record at that time: it is forgotten with that record
}

type wireSettingsBody struct {
	Identity      []byte `cbor:"1,keyasint"`
	Number        uint64 `cbor:"2,keyasint"`
	Ranges        uint64 `cbor:"3,keyasint"`
	By            uint64 `cbor:"4,keyasint"`
	Generation    uint64 `cbor:"5,keyasint"`
	Mode          string `cbor:"6,keyasint"`
	Encapsulation string `cbor:"7,keyasint"`
	Gateways      int64  `cbor:"8,keyasint"`
}

func (t settingsBody) author() ed25519.PublicKey { return t.identity }
func (t settingsBody) subject() mesh.ID          { return mesh.IDOf(t.identity) }
func (t settingsBody) sequence() uint64          { return t.number }

func (t settingsBody) covered(forgotten map[mesh.ID]uint64) bool {
	return t.by <= forgotten[t.subject()]
}

func encodeSettings(t settingsBody) ([]byte, error) {
	payload, err := encoding.Marshal(wireSettingsBody{
		t.identity, t.number, t.ranges, t.by, t.Generation, string(t.Mode), string(t.Encapsulation), int64(t.Gateways),
	})
	if err != nil {
		return nil, fmt.Errorf("encode settings: %w", err)
	}
	return payload, nil
}

func decodeSettings(payload []byte) (body, error) {
	var w wireSettingsBody
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
	s := settings{w.Generation, mesh.Mode(w.Mode), mesh.Encapsulation(w.Encapsulation), int(w.Gateways)}
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("decode settings: %w", err)
	}
	return settingsBody{s, w.Identity, w.Number, w.Ranges, w.By}, nil
}

// announcedSettings returns the settings announced by nodes whose records count, for
// clusters with these ranges.
func (s *store) announcedSettings(ranges uint64) []settingsBody {
	var all []settingsBody
	for _, o := range s.nonRecords {
		t, ok := o.body.(settingsBody)
		if !ok || t.ranges != ranges {
			continue
		}
		if r, ok := s.objects[recordKey(o.key.author)].body.(recordBody); ok && r.Settings == ranges {
			all = append(all, t)
		}
	}
	return all
}

// effectiveSettings returns the settings in use: those of our file, unless others have
// announced a higher generation.
func (g *Gossip) effectiveSettings() settings {
	if own := settingsOf(g.cluster); g.adopted.Generation <= own.Generation {
		return own
	}
	return g.adopted
}

// updateSettings adopts the highest generation, and announces ours if no node does. A new
// node first merges the state of some member: it may have received only one of two
// conflicting announcements, and of nodes that start together, all would announce theirs.
func (g *Gossip) updateSettings() {
	var (
		news []object
		err  error
	)
	g.mu.Lock()
	before := g.effectiveSettings()
	if g.merged {
		g.adoptSettings()
		news, err = g.announceSettings()
	}
	changed := g.effectiveSettings() != before
	g.mu.Unlock()
	if err != nil {
		g.log.at(slog.LevelError, "announce cluster settings", "err", err)
	}
	if changed {
		g.signal()
	}
	if len(news) > 0 {
		g.spread(news)
	}
}

// adoptSettings adopts the highest announced generation, if it is higher than ours and
// all nodes that announce it agree. It stays adopted until a higher one comes or our own
// file has that generation, so that nodes don't revert when the node that announced it is
// gone.
func (g *Gossip) adoptSettings() {
	all := g.store.announcedSettings(g.ranges)
	if len(all) == 0 {
		return
	}
	top := slices.MaxFunc(all, func(a, b settingsBody) int { return cmp.Compare(a.Generation, b.Generation) }).settings
	agreed := !slices.ContainsFunc(all, func(t settingsBody) bool { return t.Generation == top.Generation && t.settings != top })
	if agreed && top.Generation > g.effectiveSettings().Generation {
		g.adopted = top
	}
}

// announceSettings stores our settings if no node announces them, or if we have announced
// others for the same generation.
func (g *Gossip) announceSettings() ([]object, error) {
	ours := g.effectiveSettings()
	key := objectKey{kindSettings, g.self, g.self}
	last, announced := g.store.objects[key].body.(settingsBody)
	contradicts := announced && last.Generation == ours.Generation && last.settings != ours
	if _, ok := g.store.objects[recordKey(g.self)]; !ok || !contradicts &&
		slices.ContainsFunc(g.store.announcedSettings(g.ranges), func(t settingsBody) bool { return t.settings == ours }) {
		return nil, nil
	}
	payload, err := encodeSettings(settingsBody{
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

// settingsProblems returns which nodes have other settings, and whether our own file is
// outdated.
func (g *Gossip) settingsProblems() []mesh.Problem {
	ours, file := g.effectiveSettings(), settingsOf(g.cluster)
	differing := make(map[settings][]string)
	for _, t := range g.store.announcedSettings(g.ranges) {
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
				s.Generation, ownSettings(ours, s.Generation), s, strings.Join(names, ", ")),
			Advice: "write the settings that you want on one node, with a higher cluster.generation, and restart or reload meshd there",
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

// ownSettings describes our settings of a generation.
func ownSettings(ours settings, generation uint64) string {
	if ours.Generation == generation {
		return ours.String()
	}
	return "not known"
}
