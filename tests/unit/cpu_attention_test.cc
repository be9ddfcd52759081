#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/unit/cpu_testing.h"

namespace filigree {
namespace {

struct Case {
  int64_t sequences, seq_len, heads, kv_heads, head_size;
  int64_t tokens() const { return sequences * seq_len; }
};
const Case kCases[] = {
    {1, 1, 1, 1, 4},     // one token sees itself
    {2, 5, 6, 3, 8},     // three key-value heads
    {1, 7, 9, 3, 6},     // three queries a key
    {3, 64, 2, 2, 16},   // exactly one strip of queries
    {2, 131, 4, 1, 10},  // three strips, one key-value head for all
};

// The probabilities of one query by the definition, in double.
template <typename T>
std::vector<double> Probabilities(const Case& c, const TestMatrix<T>& q, const TestMatrix<T>& k,
                                  int64_t row, int64_t head, double* lse) {
  const int64_t first = row / c.seq_len * c.seq_len, kv = head / (c.heads / c.kv_heads);
  std::vector<double> p;
  double sum = 0;
  for (int64_t key = first; key <= row; ++key) {
    double score = 0;
    for (int64_t e = 0; e < c.head_size; ++e) {
      score += q(row, head * c.head_size + e) * k(key, kv * c.head_size + e);
    }
    p.push_back(std::exp(score / std::sqrt(static_cast<double>(c.head_size))));
    sum += p.back();
  }
  for (double& x : p) x /= sum;
  *lse = std::log(sum);
  return p;
}

template <typename T>
class CpuAttentionTest : public TypedCpuTest<T> {};
TYPED_TEST_SUITE(CpuAttentionTest, FloatTypes);

TYPED_TEST(CpuAttentionTest, AgreesWithTheDefinition) {
  using T = TypeParam;
  for (const Case& c : kCases) {
    // q, k and v are column slices of one matrix, as a fused projection leaves them.
    const int64_t q_cols = c.heads * c.head_size, kv_cols = c.kv_heads * c.head_size;
    auto q = TestMatrix<T>::Random(c.tokens(), q_cols, 1, 5);
    auto k = TestMatrix<T>::Random(c.tokens(), kv_cols, 2, 3);
    auto v = TestMatrix<T>::Random(c.tokens(), kv_cols, 3, 1);
    auto out = TestMatrix<T>::Constant(c.tokens(), q_cols, NAN, 2);
    TestMatrix<T> lse(c.tokens(), c.heads, 1);
    this->backend_.Attention(
        {q.view(), k.view(), v.view(), out.view(), lse.view(), c.seq_len, c.heads, c.kv_heads},
        *this->stream_);
    SCOPED_TRACE(::testing::Message() << c.seq_len << " x " << c.heads << "/" << c.kv_heads);
    const auto &cq = q, &ck = k, &cv = v;
    TestMatrix<double> want(c.tokens(), q_cols), want_lse(c.tokens(), c.heads);
    for (int64_t row = 0; row < c.tokens(); ++row) {
      for (int64_t h = 0; h < c.heads; ++h) {
        const auto p = Probabilities(c, cq, ck, row, h, &want_lse(row, h));
        const int64_t first = row / c.seq_len * c.seq_len, kv = h / (c.heads / c.kv_heads);
        for (size_t i = 0; i < p.size(); ++i) {
          for (int64_t e = 0; e < c.head_size; ++e) {
            want(row, h * c.head_size + e) += p[i] * cv(first + i, kv * c.head_size + e);
          }
        }
      }
    }
    const auto &cwant = want, &cwant_lse = want_lse;
    ExpectNear(out, [&](int64_t i, int64_t j) { return cwant(i, j); });
    ExpectNear(lse, [&](int64_t i, int64_t j) { return cwant_lse(i, j); });
  }
}

// Scores of a few hundred overflow exp in fp32 unless the maximum is taken off first.
TEST_F(CpuTest, AttentionSurvivesLargeScores) {
  auto q = TestMatrix<float>::Constant(4, 8, 30), v = TestMatrix<float>::Random(4, 8, 1);
  auto k = TestMatrix<float>::Random(4, 8, 2);
  k.Fill([](int64_t i, int64_t) { return i == 2 ? 30.0 : -30.0; });
  TestMatrix<float> out(4, 8), lse(4, 1);
  backend_.Attention({q.view(), k.view(), v.view(), out.view(), lse.view(), 4, 1, 1}, *stream_);
  const auto& cv = v;
  ExpectNear(out, [&](int64_t i, int64_t j) {
    if (i >= 2) return cv(2, j);
    double sum = 0;
    for (int64_t key = 0; key <= i; ++key) sum += cv(key, j) / (i + 1);
    return sum;
  });
}

class CpuAttentionGradientTest : public CpuTest {
 protected:
  void Check(const Case& c) {
    const int64_t q_cols = c.heads * c.head_size, kv_cols = c.kv_heads * c.head_size;
    auto q = TestMatrix<double>::Random(c.tokens(), q_cols, 1, 5);
    auto k = TestMatrix<double>::Random(c.tokens(), kv_cols, 2, 3);
    auto v = TestMatrix<double>::Random(c.tokens(), kv_cols, 3, 1);
    auto dout = TestMatrix<double>::Random(c.tokens(), q_cols, 4, 2);
    TestMatrix<double> out(c.tokens(), q_cols), lse(c.tokens(), c.heads);
    auto dq = TestMatrix<double>::Constant(c.tokens(), q_cols, NAN, 2);  // overwrites
    auto dk = TestMatrix<double>::Constant(c.tokens(), kv_cols, NAN, 2);
    auto dv = TestMatrix<double>::Constant(c.tokens(), kv_cols, NAN, 2);
    const auto loss = [&] {
      backend_.Attention(
          {q.view(), k.view(), v.view(), out.view(), lse.view(), c.seq_len, c.heads, c.kv_heads},
          *stream_);
      return WeightedSum(out, dout);
    };
    loss();
    backend_.AttentionBackward({q.view(), k.view(), v.view(), out.view(), dout.view(), lse.view(),
                                dq.view(), dk.view(), dv.view(), c.seq_len, c.heads, c.kv_heads},
                               *stream_);
    EXPECT_TRUE(dq.GapsAreIntact() && dk.GapsAreIntact() && dv.GapsAreIntact());
    ExpectIsGradient(loss, q, dq, "dq");
    ExpectIsGradient(loss, k, dk, "dk");
    ExpectIsGradient(loss, v, dv, "dv");
  }
};

TEST_F(CpuAttentionGradientTest, OneToken) { Check({2, 1, 2, 1, 4}); }
TEST_F(CpuAttentionGradientTest, SixHeadsOverThree) { Check({2, 5, 6, 3, 4}); }
TEST_F(CpuAttentionGradientTest, NineHeadsOverThree) { Check({1, 6, 9, 3, 4}); }
TEST_F(CpuAttentionGradientTest, MoreThanOneStrip) { Check({1, 67, 2, 1, 2}); }

TEST_F(CpuTest, AttentionBackwardInFloatIsCloseToDouble) {
  const Case c = {2, 131, 4, 2, 16};
  const int64_t q_cols = c.heads * c.head_size, kv_cols = c.kv_heads * c.head_size;
  const auto run = [&]<typename T>(T, TestMatrix<T>* dq, TestMatrix<T>* dk, TestMatrix<T>* dv) {
    auto q = TestMatrix<T>::Random(c.tokens(), q_cols, 1),
         dout = TestMatrix<T>::Random(c.tokens(), q_cols, 4);
    auto k = TestMatrix<T>::Random(c.tokens(), kv_cols, 2),
         v = TestMatrix<T>::Random(c.tokens(), kv_cols, 3);
    TestMatrix<T> out(c.tokens(), q_cols), lse(c.tokens(), c.heads);
    backend_.Attention(
        {q.view(), k.view(), v.view(), out.view(), lse.view(), c.seq_len, c.heads, c.kv_heads},
        *stream_);
    backend_.AttentionBackward({q.view(), k.view(), v.view(), out.view(), dout.view(), lse.view(),
                                dq->view(), dk->view(), dv->view(), c.seq_len, c.heads, c.kv_heads},
                               *stream_);
  };
  TestMatrix<float> dq(c.tokens(), q_cols), dk(c.tokens(), kv_cols), dv(c.tokens(), kv_cols);
  TestMatrix<double> dq64(c.tokens(), q_cols), dk64(c.tokens(), kv_cols), dv64(c.tokens(), kv_cols);
  run(float(), &dq, &dk, &dv);
  run(double(), &dq64, &dk64, &dv64);
  const auto &want_q = dq64, &want_k = dk64, &want_v = dv64;
  ExpectNear(dq, [&](int64_t i, int64_t j) { return want_q(i, j); });
  ExpectNear(dk, [&](int64_t i, int64_t j) { return want_k(i, j); });
  ExpectNear(dv, [&](int64_t i, int64_t j) { return want_v(i, j); });
}

TYPED_TEST(CpuAttentionTest, RopeTurnsPairsByPosition) {
  using T = TypeParam;
  const int64_t shapes[][3] = {{7, 3, 10}, {16, 2, 64}, {1, 1, 2}};
  for (const auto& [seq_len, heads, head_size] : shapes) {
    const int64_t rows = 3 * seq_len, half = head_size / 2, size = head_size, length = seq_len;
    auto x = TestMatrix<T>::Random(rows, heads * head_size, 1, 3);
    const auto before = x;
    this->backend_.Rope({x.view(), seq_len, heads, 500.0}, *this->stream_);
    ExpectNear(x, [&](int64_t t, int64_t column) {
      const int64_t e = column % size, j = e % half, head = column - e;
      const double angle = (t % length) * std::pow(500.0, -2.0 * j / size);
      const double a = before(t, head + j), b = before(t, head + j + half);
      return e < half ? a * std::cos(angle) - b * std::sin(angle)
                      : b * std::cos(angle) + a * std::sin(angle);
    });
    // Turning back is the inverse, hence also the transpose: the gradient.
    this->backend_.Rope({x.view(), seq_len, heads, 500.0, true}, *this->stream_);
    ExpectNear(x, [&](int64_t i, int64_t j) { return before(i, j); });
  }
}

}  // namespace
}  // namespace filigree
