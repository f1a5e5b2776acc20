// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"log/slog"
	"regexp"
	"sync/atomic"

	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
)

// Nodes tell each other apart by fingerprints, which say nothing to a person. So the log has
// names in their place, as far as they are known.

// nodeNames are the names of the nodes, by fingerprint.
type nodeNames struct {
	known atomic.Pointer[map[string]string]
}

// set takes the names from the records. A name that two nodes have names neither.
func (n *nodeNames) set(records []mesh.Record) {
	count := make(map[string]int, len(records))
	for _, r := range records {
		count[r.Name]++
	}
	known := make(map[string]string, len(records))
	for _, r := range records {
		if count[r.Name] == 1 {
			known[r.ID().String()] = r.Name
		}
	}
	n.known.Store(&known)
}

func (n *nodeNames) of(fingerprint string) (name string, ok bool) {
	if known := n.known.Load(); known != nil {
		name, ok = (*known)[fingerprint]
	}
	return name, ok
}

// member is a fingerprint, which memberlist's texts have with an epoch.
var member = regexp.MustCompile(`\b([0-9a-f]{32})(-[0-9a-f]{8})?\b`)

// in returns a text with names in the place of fingerprints.
func (n *nodeNames) in(text string) string {
	return member.ReplaceAllStringFunc(text, func(s string) string {
		if name, ok := n.of(s[:2*len(mesh.ID{})]); ok {
			return name
		}
		return s
	})
}

// attr returns what the log has of an attribute. That of a stranger has another key. Under
// keyID, the fingerprint itself is meant.
func (n *nodeNames) attr(a slog.Attr) slog.Attr {
	switch v := a.Value.Any().(type) {
	case mesh.ID:
		if a.Key == keyID {
			return a
		}
		if name, ok := n.of(v.String()); ok {
			return slog.String(a.Key, name)
		}
		return slog.Any("fingerprint", v)
	case error:
		return slog.String(a.Key, n.in(v.Error()))
	case string:
		if a.Key == gossip.KeyReport {
			return slog.String(a.Key, n.in(v))
		}
	}
	return a
}

// keyID is the key of a fingerprint in a line that has the name, too, or is about this node.
const keyID = "id"

// nameHandler writes names in the place of fingerprints.
type nameHandler struct {
	slog.Handler
	names *nodeNames
}

// Handle implements slog.Handler.
func (h nameHandler) Handle(ctx context.Context, r slog.Record) error {
	named := slog.NewRecord(r.Time, r.Level, r.Message, r.PC)
	r.Attrs(func(a slog.Attr) bool {
		named.AddAttrs(h.names.attr(a))
		return true
	})
	return h.Handler.Handle(ctx, named)
}

// WithAttrs implements slog.Handler.
func (h nameHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return nameHandler{h.Handler.WithAttrs(attrs), h.names}
}

// WithGroup implements slog.Handler.
func (h nameHandler) WithGroup(name string) slog.Handler {
	return nameHandler{h.Handler.WithGroup(name), h.names}
}
