// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"sync"

	"github.com/meshd/meshd/internal/control"
	"github.com/meshd/meshd/internal/mesh"
)

// newHTTP returns an HTTP client that follows no redirects and decompresses nothing, so
// that a hostile answer can neither send it elsewhere nor grow in memory.
func newHTTP() http.Client {
	return http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: 8 << 10},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// fetchConfig asks the service gateway and the exits for the configuration, and other nodes when
// the gateway is silent.
func (c *client) fetchConfig(ctx context.Context) (config control.ClientConfig, err error) {
	gateway := serviceGateway(c.config)
	others := func(silent bool) (ps []control.ClientPeer) {
		for _, p := range c.config.Peers {
			if c.silent(p) == silent && p.PublicKey != gateway.PublicKey && !p.IsExit() {
				ps = append(ps, p)
			}
		}
		rand.Shuffle(len(ps), func(i, j int) { ps[i], ps[j] = ps[j], ps[i] })
		return ps[:min(len(ps), maxParallel)]
	}
	if c.Now().Sub(c.silentAskedAt) >= retryEvery {
		c.silentAskedAt = c.Now()
		_, _ = c.ask(ctx, others(true)) // only to update c.missed
	}
	first := []control.ClientPeer{gateway}
	for _, p := range c.config.Peers {
		if p.IsExit() && p.PublicKey != gateway.PublicKey {
			first = append(first, p)
		}
	}
	if config, err = c.ask(ctx, first); err == nil || !c.silent(gateway) {
		return config, err
	}
	if c.allSilent() {
		return c.ask(ctx, c.config.Standbys[:min(len(c.config.Standbys), maxParallel)])
	}
	return c.ask(ctx, others(false))
}

// allSilent reports whether every peer is silent.
func (c *client) allSilent() bool {
	return !slices.ContainsFunc(c.config.Peers, func(p control.ClientPeer) bool { return !c.silent(p) })
}

// serviceGateway returns the node that Services go through, or the first node if there
// is none.
func serviceGateway(c control.ClientConfig) control.ClientPeer {
	for _, p := range c.Peers {
		if p.ServiceGateway {
			return p
		}
	}
	return c.Peers[0]
}

// silent reports whether a node has left too many requests in a row unanswered.
func (c *client) silent(p control.ClientPeer) bool { return c.missed[p.PublicKey] >= missesToSilent }

// errRefused is a node's signed answer that this host is not one of its clients.
var errRefused = errors.New("refused")

// ask sends a request to all the nodes in parallel and updates c.missed. It returns the
// configuration of the first node, in the order of peers, that has answered.
func (c *client) ask(ctx context.Context, peers []control.ClientPeer) (config control.ClientConfig, err error) {
	type answer struct {
		config control.ClientConfig
		err    error
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	silent := c.silentKeys()
	answers := make([]answer, len(peers))
	var asking sync.WaitGroup
	for i, p := range peers {
		asking.Go(func() { answers[i].config, answers[i].err = c.request(ctx, p, silent) })
	}
	asking.Wait()
	err = errors.New("no node answers")
	for i, a := range slices.Backward(answers) {
		if key := peers[i].PublicKey; a.err == nil || errors.Is(a.err, errRefused) {
			delete(c.missed, key)
		} else {
			c.missed[key]++
		}
		if a.err == nil {
			config, err = a.config, nil
		} else if err != nil {
			err = fmt.Errorf("ask %s: %w", peers[i].Name, a.err)
		}
	}
	return config, err
}

// silentKeys returns the public keys of up to maxSilent silent nodes, the service
// gateway's first.
func (c *client) silentKeys() []string {
	keys := make([]string, 0, maxSilent)
	for _, p := range slices.Concat([]control.ClientPeer{serviceGateway(c.config)}, c.config.Peers, c.config.Standbys) {
		if c.silent(p) && len(keys) < maxSilent && !slices.Contains(keys, p.PublicKey) {
			keys = append(keys, p.PublicKey)
		}
	}
	return keys
}

// request asks one node for the configuration and checks its answer.
func (c *client) request(ctx context.Context, p control.ClientPeer, silent []string) (config control.ClientConfig, err error) {
	q := newQuestion(c.File.Config.Cluster, c.File.PrivateKey.PublicKey())
	query := q.query()
	query["silent"] = silent
	at := url.URL{Scheme: "http", Host: netip.AddrPortFrom(p.Overlay, mesh.ClientPort).String(), Path: configPath, RawQuery: query.Encode()}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return config, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return config, err
	}
	defer resp.Body.Close()
	return c.readAnswer(q, p.ID, resp)
}

// readAnswer verifies the signature of a node's answer and returns the part of the
// configuration that this client accepts.
func (c *client) readAnswer(q question, node mesh.ID, resp *http.Response) (config control.ClientConfig, err error) {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return config, err
	}
	if len(body) > maxAnswer {
		return config, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	}
	if err := q.verify(node, resp.Header, resp.StatusCode, body); err != nil {
		return config, err
	}
	switch {
	case resp.StatusCode == http.StatusForbidden:
		return config, errRefused
	case resp.StatusCode != http.StatusOK:
		return config, fmt.Errorf("status %d", resp.StatusCode)
	}
	if err := json.Unmarshal(body, &config); err != nil {
		return config, err
	}
	config, rejected, err := c.File.accept(config)
	if len(rejected) > 0 {
		c.Logger.Debug("parts of an answer were rejected", "node", node, "count", len(rejected), "first", rejected[0])
	}
	return config, err
}
