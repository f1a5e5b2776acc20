// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/meshd/meshd/internal/connect"
	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
	"github.com/meshd/meshd/internal/metrics"
)

// servers are the daemon's HTTP servers.
type servers struct {
	control controlServer
	metrics httpServer
	clients httpServer // answers meshd connect
}

// shutdownTimeout bounds how long the daemon's end waits for requests to each server.
const shutdownTimeout = 2 * time.Second

func (d *daemon) runControlServer(ctx context.Context, ready func()) error {
	s, err := control.Listen(d.opt.RunDir, d, d.log.Logger)
	if err != nil {
		return err
	}
	d.servers.control = s
	return closeAfter(ctx, ready, s)
}

func (d *daemon) runMetricsServer(ctx context.Context, ready func()) error {
	s := metrics.NewServer(d.metrics, d.log.Logger)
	d.servers.metrics = s
	return closeAfter(ctx, ready, s)
}

func (d *daemon) runClientServer(ctx context.Context, ready func()) error {
	s := connect.NewServer(connect.ServerOptions{
		Source: d.configOf, IsClient: d.isClientAddress, Cluster: d.cfg.Cluster.Name, Identity: d.self.Key, Logger: d.log.Logger,
	})
	d.servers.clients = s
	return closeAfter(ctx, ready, s)
}

// closeAfter closes a server when ctx ends.
func closeAfter(ctx context.Context, ready func(), server interface{ Close(context.Context) error }) error {
	ready()
	<-ctx.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	return server.Close(ctx)
}

// ProblemMetrics means that metrics can't be served.
const ProblemMetrics mesh.ProblemKind = "metrics"

// serveMetrics has the metrics server listen. The turn goes on if it can't.
func (d *daemon) serveMetrics() []mesh.Problem {
	err := d.servers.metrics.EnsureListening(d.cfg.Metrics.Listen)
	if err == nil {
		return nil
	}
	return []mesh.Problem{{
		Kind: ProblemMetrics, Node: d.cfg.Node.Name, Text: err.Error(),
		Advice: `set metrics.listen to a free address and port of this host, or to "" for no metrics; then run: systemctl reload meshd`,
	}}
}

// ProblemAnswer means that clients can't ask this node for their configuration.
const ProblemAnswer mesh.ProblemKind = "no-answer"

// answerClients has the client server listen at this node's overlay addresses, once there are
// clients.
func (d *daemon) answerClients(t turn) []mesh.Problem {
	var at []netip.AddrPort
	if len(t.view.Clients) > 0 {
		for _, a := range t.wanted.Topology.Addresses {
			at = append(at, netip.AddrPortFrom(a, mesh.ClientPort))
		}
	}
	err := d.servers.clients.EnsureListening(at...)
	if err == nil {
		return nil
	}
	return []mesh.Problem{{
		Kind: ProblemAnswer, Node: t.cfg.Node.Name, Text: err.Error(),
		Advice: fmt.Sprintf("see which program uses the port: ss -ltnp sport = %d; until then meshd connect asks other nodes", mesh.ClientPort),
	}}
}
