// SPDX-License-Identifier: Apache-2.0

package gossip

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/hashicorp/memberlist"

	"github.com/meshd/meshd/internal/mesh"
)

// Objects spread in three ways. A node that sees one for the first time sends it at once
// to a few nodes, and gives it to memberlist to gossip with its own messages: this
// reaches nearly all nodes within one or two round trips. A comparison with a random node
// every second or so finds what was missed. And a push/pull transfers everything, for
// nodes that have nothing yet.

// source is the way in which objects were received.
type source int

const (
	fromGossip source = iota // pushed or gossiped: others may not have them
	fromSync                 // asked for: others have them, or will ask too
)

// acceptObjects checks objects, stores those that count and spreads those that are new.
func (g *Gossip) acceptObjects(raws [][]byte, from source) {
	var news []object
	forged := 0
	for _, raw := range raws {
		o, err := g.check(raw)
		if errors.Is(err, errObjectSignature) {
			if forged++; forged > maxForged {
				g.counters.add("object-unread")
				break // the sender of these has nothing else for us
			}
		}
		if err == nil && o.body != nil && g.storeChecked(o) {
			news = append(news, o)
		}
	}
	if len(news) == 0 {
		return
	}
	isPath := func(o object) bool { return o.key.kind == kindPath }
	if slices.ContainsFunc(news, isPath) {
		g.signalPaths()
	}
	if slices.ContainsFunc(news, func(o object) bool { return !isPath(o) }) {
		g.signal()
	}
	if from == fromGossip {
		g.spread(news)
	}
	if slices.ContainsFunc(news, func(o object) bool { return o.key.kind == kindRecord || o.key.kind == kindSettings }) {
		g.updateSettings()
	}
}

// check decodes an object and verifies its signature. It returns an empty object, and no
// error, if no check is needed, because the object is already stored or would not count
// anyway. Cheap checks come first, because an attacker with the secret can send as much
// as the network carries.
func (g *Gossip) check(raw []byte) (object, error) {
	author, err := claimedAuthor(raw)
	if err != nil {
		return object{}, g.refuseObject(err)
	}
	g.mu.Lock()
	trusted, old := g.trusts(author), g.store.has(raw)
	g.mu.Unlock()
	if !trusted {
		g.reportUntrusted(raw)
	}
	if !trusted || old {
		return object{}, nil
	}
	// Copy raw, because an object may stay for years, and would keep the whole state that
	// it came with in memory.
	o, err := readObject(slices.Clone(raw))
	if err != nil {
		return object{}, g.refuseObject(err)
	}
	g.mu.Lock()
	result := g.store.precheck(o)
	g.mu.Unlock()
	if result != fresh {
		g.counters.add(map[outcome]string{stale: "object-stale", covered: "object-buried"}[result])
		return object{}, nil
	}
	if err := o.verify(g.name); err != nil {
		return object{}, g.refuseObject(err)
	}
	return o, nil
}

// refuseObject counts, logs and reports why an object is refused. It returns the error. The
// log has the details of the problem.
func (g *Gossip) refuseObject(err error) error {
	g.counters.add(objectReason(err))
	g.log.at(slog.LevelInfo, "object refused", "err", err)
	g.reportForged(err)
	return err
}

// storeChecked adds a checked object to the store, and reports whether that changed the
// store.
func (g *Gossip) storeChecked(o object) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.trusts(o.key.author) {
		return false // no longer trusted, since it was checked
	}
	result := g.store.put(o)
	switch result {
	case fresh:
		g.notices.resolve(string(o.key.bytes()), ProblemSequence) // a higher sequence ends the conflict
		return true
	case conflict:
		g.counters.add("object-conflict")
		g.transport.reportProblem(string(o.key.bytes()), mesh.Problem{
			Kind: ProblemSequence, Node: g.nameOf(o.key.author),
			Text:   fmt.Sprintf("two objects of %v have the sequence %d", o.key.author, o.body.sequence()),
			Advice: "find out whether two hosts use the same identity",
		})
		return g.store.has(o.raw)
	case full:
		g.reportFull(o)
	case stale:
		g.counters.add("object-stale")
	case covered:
		g.counters.add("object-buried")
	}
	return false
}

// nameOf returns the host name that a node claims, or its fingerprint.
func (g *Gossip) nameOf(id mesh.ID) string {
	if r, ok := g.store.objects[recordKey(id)].body.(recordBody); ok {
		return r.Name
	}
	return id.String()
}

// reportForged reports that a host with the secret has sent an invalid object. An object
// of a newer version is not reported.
func (g *Gossip) reportForged(err error) {
	for _, sentinel := range []error{errObjectSignature, errObjectContent} {
		if errors.Is(err, sentinel) {
			g.transport.reportProblem("forged", mesh.Problem{
				Kind: ProblemForged, Node: g.self.String(), Text: "a node with the secret sends invalid objects: " + sentinel.Error(),
				Advice: "see the log; if all nodes run the same version, an unknown host has the secret: change it",
			})
		}
	}
}

// objectReason returns the name of the counter for a refused object.
func objectReason(err error) string {
	for reason, sentinel := range map[string]error{
		"object-size": errObjectSize, "object-version": errObjectVersion, "object-kind": errObjectKind,
		"object-signature": errObjectSignature,
	} {
		if errors.Is(err, sentinel) {
			return reason
		}
	}
	return "object-content"
}

// spread sends new objects to some nodes at once, and queues them for gossip.
func (g *Gossip) spread(news []object) {
	raws := make([][]byte, 0, len(news))
	for _, o := range news {
		raws = append(raws, o.raw)
		g.queue.QueueBroadcast(broadcast{o})
	}
	g.queue.Prune(maxQueued)
	others, own := g.members.others(), false
	for _, o := range news {
		_, isVerdict := o.body.(verdict)
		own = own || isVerdict && o.key.author == g.self
	}
	switch {
	case own:
		others = firstN(others, pushUrgent)
	case len(others) > pushAll:
		others = others[:pushSome]
	}
	for _, id := range others {
		g.sendObjects(id, raws, fromGossip)
	}
}

// sendObjects sends objects in as few packets as possible.
func (g *Gossip) sendObjects(to mesh.ID, raws [][]byte, how source) {
	for len(raws) > 0 {
		var payload []byte
		payload, raws = packObjects([]byte{byte(how)}, raws, maxPayload)
		g.transport.send(to, kindObjects, payload)
	}
}

// handle processes the payload of one packet that is not memberlist's.
func (g *Gossip) handle(m message) {
	switch m.kind {
	case kindObjects:
		if len(m.payload) == 0 {
			g.counters.add("packet-content")
			return
		}
		raws, err := unpackObjects(m.payload[1:])
		if err != nil {
			g.counters.add("packet-content")
		}
		how := fromSync
		if m.payload[0] == byte(fromGossip) {
			how = fromGossip
		}
		g.acceptObjects(raws, how)
	case kindSync:
		g.mu.Lock()
		steps, objects, err := g.store.answer(m.payload)
		g.mu.Unlock()
		if err != nil {
			g.counters.add("packet-content")
			return
		}
		for _, step := range steps {
			g.transport.send(m.from, kindSync, step)
		}
		g.sendObjects(m.from, objects, fromSync)
	case kindCall, kindQuestion, kindAnswer, kindOrder:
		g.handleLetter(m)
	}
}

// broadcast is an object in memberlist's queue. A newer version of the same object
// replaces it.
type broadcast struct{ object }

var _ memberlist.NamedBroadcast = broadcast{}

func (b broadcast) Name() string                          { return string(b.key.bytes()) }
func (b broadcast) Invalidates(memberlist.Broadcast) bool { return false } // the name is enough
func (b broadcast) Message() []byte                       { return b.raw }
func (b broadcast) Finished()                             {}

// delegate answers memberlist's requests.
type delegate struct{ g *Gossip }

var _ memberlist.Delegate = delegate{}

// NodeMeta is empty: with metadata of some hundred bytes, starting all nodes at once
// takes many times longer, so everything is in objects.
func (d delegate) NodeMeta(int) []byte { return nil }

// NotifyMsg receives an object that was gossiped.
func (d delegate) NotifyMsg(b []byte) {
	payload, _ := packObjects([]byte{byte(fromGossip)}, [][]byte{b}, len(b)+3)
	select {
	case d.g.transport.inbound <- message{kind: kindObjects, payload: payload}:
	default:
		d.g.counters.add("packet-overload")
	}
}

// GetBroadcasts returns the objects to be gossiped.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.g.queue.GetBroadcasts(overhead, limit)
}

// LocalState returns everything, for a push/pull. If that does not fit, records come
// first, because a new node needs them most.
func (d delegate) LocalState(bool) []byte {
	d.g.mu.Lock()
	defer d.g.mu.Unlock()
	objects := slices.Clone(d.g.store.sorted())
	slices.SortStableFunc(objects, func(a, b object) int { return cmp.Compare(a.key.kind, b.key.kind) })
	raws := make([][]byte, 0, len(objects))
	for _, o := range objects {
		raws = append(raws, o.raw)
	}
	state, _ := packObjects([]byte{formatVersion}, raws, maxState/2)
	return state
}

// MergeRemoteState receives everything that another node has.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	g := d.g
	if len(b) == 0 || b[0] != formatVersion || len(b) > maxState {
		g.counters.add("state-content")
		return
	}
	raws, err := unpackObjects(b[1:])
	if err != nil {
		g.counters.add("state-content")
	}
	g.mu.Lock()
	first := !g.merged
	g.mu.Unlock()
	how := fromGossip
	if first {
		how = fromSync // what a new node learns is known to all others
	}
	g.acceptObjects(raws, how)
	if first {
		g.mu.Lock()
		g.merged = true
		g.mu.Unlock()
		g.signal()
		g.updateSettings()
	}
}
