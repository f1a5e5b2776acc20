// SPDX-License-Identifier: Apache-2.0

package connect

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/meshd/meshd/internal/mesh"
)

// An answer comes over HTTP, and whatever is between, as a pod that has taken the port,
// could give one. So a node signs what it answers: for this cluster, this client, and
// this one question.

const (
	configPath      = "/v1/config"
	headerIdentity  = "Meshd-Identity"  // of the node, its public key, base64
	headerSignature = "Meshd-Signature" // base64
	// answerDomain keeps a signature of an answer from being one of anything else that
	// nodes sign.
	answerDomain = "meshd client answer v1\x00"
)

// question is what an answer is an answer to.
type question struct {
	cluster string
	client  wgtypes.Key // who asks
	nonce   [32]byte    // random
}

// newQuestion returns a question that nobody has asked before.
func newQuestion(cluster string, client wgtypes.Key) question {
	q := question{cluster: cluster, client: client}
	_, _ = rand.Read(q.nonce[:]) // it never fails, see crypto/rand
	return q
}

// query is the form in which a question is asked.
func (q question) query() url.Values {
	return url.Values{
		"key":   {q.client.String()},
		"nonce": {base64.StdEncoding.EncodeToString(q.nonce[:])},
	}
}

// parseQuestion is the reverse of query.
func parseQuestion(cluster string, v url.Values) (q question, err error) {
	q.cluster = cluster
	if q.client, err = wgtypes.ParseKey(v.Get("key")); err != nil {
		return q, errors.New("the client's key is missing")
	}
	nonce, err := base64.StdEncoding.DecodeString(v.Get("nonce"))
	if err != nil || len(nonce) != len(q.nonce) {
		return q, fmt.Errorf("want a nonce of %d bytes", len(q.nonce))
	}
	q.nonce = [32]byte(nonce)
	return q, nil
}

// signedBytes is what a signature covers. Only the cluster's name and the body have no
// fixed length; the name holds no zero byte.
func (q question) signedBytes(status int, body []byte) []byte {
	b := append([]byte(answerDomain), q.cluster...)
	b = append(append(append(b, 0), q.client[:]...), q.nonce[:]...)
	return append(binary.BigEndian.AppendUint16(b, uint16(status)), body...)
}

// sign puts the signature of an answer into its header.
func (q question) sign(h http.Header, identity ed25519.PrivateKey, status int, body []byte) {
	h.Set(headerIdentity, base64.StdEncoding.EncodeToString(identity.Public().(ed25519.PublicKey)))
	h.Set(headerSignature, base64.StdEncoding.EncodeToString(ed25519.Sign(identity, q.signedBytes(status, body))))
}

// verify says why an answer is not that of a node to this question.
func (q question) verify(node mesh.ID, h http.Header, status int, body []byte) error {
	identity, err := base64.StdEncoding.DecodeString(h.Get(headerIdentity))
	if err != nil || len(identity) != ed25519.PublicKeySize {
		return errors.New("the answer is not signed")
	}
	signature, err := base64.StdEncoding.DecodeString(h.Get(headerSignature))
	switch {
	case mesh.IDOf(identity) != node:
		return fmt.Errorf("the answer is of %v, want one of %v", mesh.IDOf(identity), node)
	case err != nil || !ed25519.Verify(identity, q.signedBytes(status, body), signature):
		return errors.New("the answer's signature does not hold")
	}
	return nil
}
