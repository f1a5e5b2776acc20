// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/meshd/meshd/internal/atomicfile"
	"github.com/meshd/meshd/internal/config"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/gossip"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/rotation"
	"github.com/meshd/meshd/internal/wait"
)

const (
	// roundLimit is how long the nodes have for a round. It is less than a client of the control socket waits.
	roundLimit = 20 * time.Second
	// orderEvery is how often an order is repeated: it may get lost.
	orderEvery = time.Second
	// shownNodes is how many nodes a text about secrets names.
	shownNodes = 10
)

// RotateSecret implements control.Daemon.
func (d *daemon) RotateSecret(ctx context.Context) (control.Rotated, error) {
	ctx, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	var r round
	for {
		var done bool
		var err error
		late := d.inLoop(ctx, func() { done, err = d.advance(&r) })
		switch {
		case err != nil:
			return control.Rotated{}, err
		case done:
			return r.Rotated, nil
		case late != nil || len(r.send) > 0 && wait.Sleep(ctx, orderEvery) != nil:
			return control.Rotated{}, fmt.Errorf("%w: these nodes have not done the round %v within %v: %s; their logs say why (journalctl -u meshd -p warning), "+
				"mostly that the daemon can't write its secret file; then run meshd secret rotate again, which goes on from here",
				control.ErrRefused, r.step, roundLimit, namesOf(r.send))
		}
	}
}

// round is a round that this node has the others do.
type round struct {
	control.Rotated
	step rotation.Round  // 0 before the first step
	send []rotation.Node // who was ordered to do it last
}

// advance takes the next step of a round, and reports whether the round was done before.
func (d *daemon) advance(r *round) (done bool, err error) {
	if r.step == rotation.Drop && len(d.cfg.Secrets) == 1 {
		r.Finished = true
		return true, nil
	}
	nodes, keys := othersOf(d.gossip.View(), d.self.ID())
	step, err := rotation.Next(d.cfg.Secrets, nodes)
	if err != nil {
		return false, fmt.Errorf("%w: %w", control.ErrRefused, err)
	}
	if r.step != 0 && step.Round > r.step {
		return true, nil
	}
	if step.Begin {
		if step.New, err = rotation.Successor(step.Old, rand.Reader); err != nil {
			return false, err
		}
	}
	order := step.Order()
	r.Rotated = control.Rotated{Round: step.Round.String(), Old: order.Old, New: order.New, Nodes: len(nodes) + 1, Trust: d.settings.Trust}
	r.step, r.send = step.Round, nil
	if !step.Begin && !step.Own {
		r.send = step.Send
		for _, n := range step.Send {
			d.sendOrder(order, n, keys[n.ID])
		}
		return false, nil
	}
	next, err := order.Apply(d.cfg.Secrets)
	if err != nil {
		return false, fmt.Errorf("change this node's secret: %w", err)
	}
	if err := d.setSecrets(next); err != nil {
		return false, fmt.Errorf("%w: change this node's secret: %w", control.ErrRefused, err)
	}
	d.log.Info("secret changed", "round", order.Round, "old", order.Old, "new", order.New)
	return false, nil
}

// othersOf returns the other nodes with what a rotation depends on, by name, and their path keys.
func othersOf(view mesh.View, self mesh.ID) (nodes []rotation.Node, keys map[mesh.ID][32]byte) {
	keys = make(map[mesh.ID][32]byte)
	for _, p := range view.Paths {
		keys[p.Author] = p.Key
	}
	for _, r := range view.Records {
		if id := r.ID(); id != self {
			nodes = append(nodes, rotation.Node{ID: id, Name: r.Name, Alive: view.Alive[id], HasKey: publicKey(keys[id]) != nil, Secrets: r.Secrets})
		}
	}
	slices.SortFunc(nodes, func(a, b rotation.Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes, keys
}

// sendOrder sends an order once.
func (d *daemon) sendOrder(o rotation.Order, to rotation.Node, key [32]byte) {
	sealed, err := rotation.Seal(o, d.cfg.Cluster.Name, d.self.Key, to.ID, publicKey(key))
	if err == nil {
		err = d.gossip.SendOrder(to.ID, sealed)
	}
	if err != nil {
		d.log.Debug("order is not sent", "to", to.Name, "err", err)
	}
}

// followOrder does what another node orders, and reports whether this has changed something. It takes orders of nodes
// that the last turn knew: those that are trusted and not revoked.
func (d *daemon) followOrder(c gossip.Call) bool {
	records := d.published.Load().turn.view.Records
	i := slices.IndexFunc(records, func(r mesh.Record) bool { return r.ID() == c.From })
	if i < 0 {
		return false
	}
	from := records[i]
	order, err := rotation.Open(c.Sealed, d.cfg.Cluster.Name, from.Identity, d.self.ID(), d.relayOptions.PathKey)
	if err != nil {
		d.log.Debug("order dropped", "from", from.Name, "err", err)
		return false
	}
	next, err := order.Apply(d.cfg.Secrets)
	if errors.Is(err, rotation.ErrDone) {
		return false
	}
	if err == nil {
		err = d.setSecrets(next)
	}
	if err != nil {
		if d.log.said.IsNew(time.Now(), "order", from.Name, err.Error()) {
			d.log.Warn("secret not changed", "round", order.Round, "by", from.Name, "err", err)
		}
		return false
	}
	d.log.Info("secret changed", "round", order.Round, "old", order.Old, "new", order.New, "by", from.Name)
	return true
}

// setSecrets writes other secrets to the file, and takes them over. Nothing else of the configuration changes: what
// a person has edited there takes effect when he reloads it.
func (d *daemon) setSecrets(next []rotation.Secret) error {
	path, err := filepath.EvalSymlinks(d.cfg.SecretFile)
	if err != nil {
		return fmt.Errorf("find the secret file: %w", err)
	}
	inFile, err := config.ReadSecrets(path)
	if err != nil {
		return err
	}
	if !slices.Equal(inFile, d.cfg.Secrets) {
		return fmt.Errorf("%s has been edited and not been loaded: run systemctl reload meshd first", path)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the secret file: %w", err)
	}
	if err := atomicfile.Write(path, config.Secrets(next).Replace(content), 0o600); err != nil {
		return fmt.Errorf("%w; the unit of systemd lets meshd write to /etc/meshd, for another directory add ReadWritePaths= with systemctl edit meshd", err)
	}
	if err := d.gossip.Reconfigure(d.cfg.Cluster, joinList(d.cfg), next, d.cfg.Trusted); err != nil {
		return err
	}
	d.cfg.Secrets = next
	return nil
}

// secretNotes says which nodes accept which secrets while some accept several.
func secretNotes(node string, records []mesh.Record) []mesh.Problem {
	on := make(map[string][]string) // names of nodes by their secrets
	several := ""                   // a node that accepts several
	for _, r := range records {
		var hashes []string
		for _, h := range r.Secrets {
			hashes = append(hashes, h.String())
		}
		if len(hashes) > 1 && (several == "" || r.Name < several) {
			several = r.Name
		}
		list := strings.Join(hashes, ", then ")
		if list == "" {
			list = "unknown"
		}
		on[list] = append(on[list], r.Name)
	}
	if several == "" {
		return nil
	}
	var parts []string
	for list, names := range on {
		slices.Sort(names)
		parts = append(parts, list+" on "+mesh.Some(names, shownNodes))
	}
	slices.Sort(parts)
	return []mesh.Problem{{
		Kind: mesh.ProblemNote, Node: node,
		Text:   "the secret is being changed; accepted, and the first of them used, are " + strings.Join(parts, "; "),
		Advice: fmt.Sprintf("to finish it, run meshd secret rotate on %s; if it was begun by hand, finish it by hand", several),
	}}
}

// namesOf lists nodes.
func namesOf(nodes []rotation.Node) string {
	var names []string
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	return mesh.Some(names, shownNodes)
}
