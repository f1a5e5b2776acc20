// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/test/lab"
)

// The Service of the benchmark: each node answers for it itself.
const (
	servicePort = 80
	answerPort  = 7000
	serviceRule = `
table ip kube {
	chain services {
		type nat hook prerouting priority dstnat
		ip daddr %s tcp dport %d dnat to %s
	}
}
`
)

var serviceAddr = netip.MustParseAddr("10.43.7.7")

// measureClients takes the time from a command until every node has carried it out,
// and how long a client of meshd connect is without Services when their gateway goes.
func measureClients(ctx context.Context, binary string, nodes []*lab.Node, laptop *lab.Host, s samples) error {
	const path = "/etc/laptop.conf"
	binary, err := filepath.Abs(binary) // commands on hosts run in /
	if err != nil {
		return fmt.Errorf("find meshd: %w", err)
	}
	began := time.Now()
	if _, err := nodes[0].Meshd(ctx, "client", "add", "laptop", "--out", path); err != nil {
		return err
	}
	if err := awaitClients(ctx, nodes, 1); err != nil {
		return err
	}
	s.add("client_add_everywhere_ms", milliseconds(time.Since(began)))
	config, err := nodes[0].Run(ctx, "cat", path)
	if err == nil {
		err = laptop.WriteFile(path, config, 0o600)
	}
	if err == nil {
		err = measureConnect(ctx, laptop.Command(ctx, binary, "connect", path), nodes, laptop, s)
	}
	if err != nil {
		return fmt.Errorf("measure connect: %w", err)
	}
	began = time.Now()
	if _, err := nodes[len(nodes)-1].Meshd(ctx, "client", "remove", "laptop"); err != nil {
		return err
	}
	if err := awaitClients(ctx, nodes, 0); err != nil {
		return err
	}
	s.add("client_remove_everywhere_ms", milliseconds(time.Since(began)))
	return nil
}

// awaitClients waits until every node has so many.
func awaitClients(ctx context.Context, nodes []*lab.Node, count int) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, n := range nodes {
		g.Go(func() error { return poll(ctx, n, func(s control.Status) bool { return len(s.Clients) == count }) })
	}
	return g.Wait()
}

// measureConnect cuts off the node that Services go through. The clock runs until the
// client has an answer from another one.
func measureConnect(ctx context.Context, connect *lab.Cmd, nodes []*lab.Node, laptop *lab.Host, s samples) (err error) {
	for _, n := range nodes {
		addr, err := overlays(ctx, []*lab.Node{n})
		if err != nil {
			return err
		}
		rule := fmt.Sprintf(serviceRule, serviceAddr, servicePort, netip.AddrPortFrom(addr[0], answerPort))
		if err := n.WriteFile("/run/service.nft", rule, 0o600); err != nil {
			return err
		}
		if _, err := n.Run(ctx, "nft", "-f", "/run/service.nft"); err != nil {
			return err
		}
		echo, err := lab.ListenEcho(n.Do, answerPort)
		if err != nil {
			return err
		}
		defer echo.Close()
	}
	if err := connect.Start(); err != nil {
		return err
	}
	defer func() { _ = connect.Wait() }() // it is killed
	defer func() { err = errors.Join(err, kill(ctx, laptop, "connect")) }()
	if err := awaitService(ctx, laptop); err != nil {
		return err
	}
	gateway, err := serviceGateway(ctx, nodes)
	if err != nil {
		return err
	}
	if err := gateway.Cut(ctx); err != nil {
		return err
	}
	began := time.Now()
	if err := awaitService(ctx, laptop); err != nil {
		return err
	}
	s.add("connect_service_failover_ms", milliseconds(time.Since(began)))
	return errors.Join(gateway.Restore(ctx), settle(ctx, nodes))
}

// kill ends what runs on a host with a word in its command line.
func kill(ctx context.Context, h *lab.Host, word string) error {
	out, err := h.Run(ctx, "ps", "-eo", "pid=,args=")
	for line := range strings.Lines(out) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == word {
			_, killErr := h.Run(ctx, "kill", fields[0])
			err = errors.Join(err, killErr)
		}
	}
	return err
}

// serviceGateway is the node through which the client reaches Services now.
func serviceGateway(ctx context.Context, nodes []*lab.Node) (*lab.Node, error) {
	out, err := nodes[0].Meshd(ctx, "client", "show", "laptop", "-o", "json")
	if err != nil {
		return nil, err
	}
	var config control.ClientConfig
	if err := json.Unmarshal([]byte(out), &config); err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	for _, p := range config.Peers {
		for _, n := range nodes {
			if p.ServiceGateway && p.Name == n.Name {
				return n, nil
			}
		}
	}
	return nil, errors.New("no node carries Services")
}

// awaitService waits for one answer.
func awaitService(ctx context.Context, laptop *lab.Host) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		once, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		_, err := lab.SourceSeen(once, laptop.Do, netip.AddrPortFrom(serviceAddr, servicePort))
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(pollPeriod):
		case <-ctx.Done():
		}
	}
}
