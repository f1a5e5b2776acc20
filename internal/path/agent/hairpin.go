// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"net/netip"
	"time"

	"github.com/meshd/meshd/internal/path"
	"github.com/meshd/meshd/internal/path/rawudp"
)

// hairpinWait is how long a datagram may take to the router and back, and hairpinTries how many
// are sent.
const (
	hairpinWait  = 300 * time.Millisecond
	hairpinTries = 3
)

// Hairpin reports whether the router passes back to WireGuard's port what this host sends from there
// to its own public address (hairpinning, RFC 4787, section 6). It takes a second if not.
func (a *Agent) Hairpin(ctx context.Context, at netip.AddrPort) bool {
	keys, err := path.NewKeys(a.o.Cluster, a.self, a.self, a.o.PathKey, a.o.PathKey.PublicKey())
	if err != nil {
		return false // it is this node's own key, which gives a secret
	}
	back := make(chan struct{}, hairpinTries)
	var sent []string
	defer a.inRun(func() {
		for _, s := range sent {
			delete(a.loops, s)
		}
	})
	for range hairpinTries {
		a.inRun(func() {
			b := keys.Seal(path.Message{Op: path.Echo}, a.o.Counter())
			sent = append(sent, string(b))
			a.loops[string(b)] = back
			if err := a.o.Port.Send(rawudp.Packet{Payload: b, To: at}); err != nil {
				a.o.Logger.Debug("datagram to this host is not sent", "to", at, "err", err)
			}
		})
		timer := time.NewTimer(hairpinWait)
		select {
		case <-back:
			timer.Stop()
			return true
		case <-ctx.Done():
			timer.Stop()
			return false
		case <-timer.C:
		}
	}
	return false
}

// takeLoop reports whether a datagram is one of Hairpin's. Nobody else could have sealed it.
func (a *Agent) takeLoop(b []byte) bool {
	back, ok := a.loops[string(b)]
	if ok {
		delete(a.loops, string(b))
		back <- struct{}{}
	}
	return ok
}
