// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"slices"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// Requests of commands and of clients come in goroutines of their own. There are two ways
// to serve one:
//
//   - What only reads takes the snapshot that the loop published last. So it is served
//     even while a turn hangs, and delays no turn.
//   - What changes something runs in the loop, between two turns. It is answered when the
//     next turn is published, so that whoever asks then sees the change.

// snapshot is what the loop publishes after each turn. It does not change afterwards.
type snapshot struct {
	status  control.Status
	turn    turn
	configs configCache
}

// peer returns another node as the status has it.
func (s *snapshot) peer(id mesh.ID) (control.Peer, bool) {
	i := slices.IndexFunc(s.status.Peers, func(p control.Peer) bool { return p.ID == id })
	if i < 0 {
		return control.Peer{}, false
	}
	return s.status.Peers[i], true
}

// publish stores what requests read. Its lists are filled first: several requests may answer with them at
// once.
func (d *daemon) publish(status control.Status, t turn) {
	control.FillLists(&status)
	d.published.Store(&snapshot{status: status, turn: t})
}

// command is a change that the loop is to make.
type command struct {
	run      func()
	answered chan struct{} // closed when the turn after it is published
}

// answer lets the one who has given the command go on. It does nothing without one.
func (c command) answer() {
	if c.answered != nil {
		close(c.answered)
	}
}

// inLoop has the loop run f between two turns, and waits until the next one is published
// or the loop ends. If ctx ends before the loop takes f, f never runs.
func (d *daemon) inLoop(ctx context.Context, f func()) error {
	c := command{run: f, answered: make(chan struct{})}
	select {
	case d.commands <- c:
		<-c.answered
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the loop: %w", ctx.Err())
	}
}
